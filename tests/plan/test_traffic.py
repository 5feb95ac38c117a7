"""Bytes between ranks: planned, and counted by the transport in real steps of four processes."""

import json

from mindglm.plan import traffic
from tests.parallel.job import ROOT, Job
from tests.plan import real, traffic_worker
from tests.plan.traffic_worker import CASES, PIXELS, TEXT


def test_traffic_is_what_the_transport_counts(tmp_path):
    """Equal to the byte: messages between stages both ways, sums of gradients, gathered weights, loss and norm."""
    with Job(4, [str(ROOT / "tests/plan/traffic_worker.py"), str(tmp_path)], tmp_path / "logs") as job:
        assert job.wait() == [0] * 4, job.logs()
    counted = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(4)]
    for name, case in CASES.items():
        workload, layout = real.planned(traffic_worker.recipe_of(*case), PIXELS, TEXT)
        ranges = layout.ranges(workload)
        for rank in range(4):
            plan = traffic.of_place(workload, workload.samples[0], layout, ranges, rank % layout.stages)
            planned = {"sent": plan.activations + plan.gradients_of_activations, "gradients": plan.gradients,
                       "weights": plan.weights, "agreed": plan.agreed}
            assert counted[rank][name] == planned, (name, rank)
    assert counted[0]["dit 1x4"]["sent"] > 0 and counted[0]["dit 4x1 ZeRO-1"]["weights"] > 0
