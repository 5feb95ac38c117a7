"""Promise 3: two data-parallel processes train as one does. And a job ends when one of its ranks does."""

import json
import time

import numpy as np
import pytest

from mindglm.checkpoint import store
from tests.parallel import curve_worker
from tests.parallel.job import ROOT, Job


def curve(folder, key):
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([line[key] for line in lines if key in line], float)


def test_two_processes_give_the_loss_curve_of_one(tmp_path):
    """Loss, validation loss, weights and average to 1e-5 over 12 steps with accumulation and a skipped step."""
    with Job(2, [str(ROOT / "tests/parallel/curve_worker.py"), str(tmp_path / "two")], tmp_path / "logs") as job:
        one = curve_worker.train(tmp_path / "one", 1)
        assert job.wait() == [0, 0], job.logs()
    for key in ("loss", "grad_norm", "validation_loss", "skipped", "samples", "lr"):
        ours, theirs = curve(tmp_path / "one", key), curve(tmp_path / "two", key)
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, err_msg=key)
    assert np.isnan(curve(tmp_path / "two", "loss")).sum() == 2 and len(curve(tmp_path / "two", "validation_loss")) == 3
    ranks = [np.load(tmp_path / "two" / f"rank_{rank}.npz") for rank in (0, 1)]
    for name, parameter in one.parameters.items():
        assert ranks[0][name].tobytes() == ranks[1][name].tobytes(), name
        np.testing.assert_allclose(ranks[0][name], parameter.asnumpy(), atol=1e-5)
    np.testing.assert_allclose(ranks[0]["average"], one.ema.average, atol=1e-5)
    assert store.steps(tmp_path / "two" / "checkpoint") == [10, 12]


@pytest.mark.slow
@pytest.mark.parametrize("how, code", [("signal", 143), ("raise", 1)])
def test_what_befalls_one_rank_ends_all(tmp_path, how, code):
    """SIGTERM to one rank: both save at the same step and leave with 143. An exception: that rank is gone at once."""
    worker = str(ROOT / "tests/parallel/failing_worker.py")
    with Job(2, [worker, how, str(tmp_path / "run")], tmp_path / "logs") as job:
        if how == "signal":
            assert job.wait() == [code, code], job.logs()
            assert store.load(tmp_path / "run" / "checkpoint").step == 7
        else:
            while job.workers[1].poll() is None:
                time.sleep(0.05)
            assert job.workers[1].returncode == code
            assert "mindglm: rank 1 failed" in job.logs() and "rank 1 has had enough" in job.logs()
