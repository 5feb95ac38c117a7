"""Alone, the transport does nothing and needs nothing."""

import numpy as np
import pytest
from mindspore import Tensor

from mindglm.parallel import transport
from tests.parallel.job import ROOT, Job


def test_a_world_of_one(monkeypatch):
    monkeypatch.delenv("MS_ROLE", raising=False)
    transport.exit_if_scheduler()
    assert transport.init() == (0, 1) == (transport.rank(), transport.world())
    bucket = Tensor(np.ones(3, np.float32))
    assert transport.all_reduce_sum(bucket) is bucket
    assert transport.sum_scalar(2.5) == 2.5
    value = {"a": 1}
    assert transport.broadcast_object(value) is value
    array = np.arange(3)
    assert transport.gather(array) is array
    transport.barrier()
    transport.finish()


def test_groups_of_one_need_nothing():
    alone = transport.group([0])
    flat = Tensor(np.ones(3, np.float32))
    for same in (transport.begin_reduce_scatter_sum(flat, alone)(), transport.all_gather(flat, alone),
                 transport.broadcast(flat, 0, alone), transport.begin_all_reduce_sum(flat, alone)()):
        assert same is flat
    assert transport.gather_objects([1], alone) == [[1]] and transport.gather_objects("a") == ["a"]
    with pytest.raises(AssertionError, match="asks for group"):
        transport.group([1, 2])


def test_failures_name_operation_tag_and_peers():
    with pytest.raises(transport.TransportError, match=r"rank 0: receive of gradients 3 with rank 5 failed after 0.0 s "
                       r"\(MindSpore: Recv failed; limit MS_NODE_TIMEOUT"):
        with transport.named_failures("receive", "gradients 3", [5]):
            raise RuntimeError("Recv failed\nmore")
    with pytest.raises(transport.TransportError, match=r"with ranks \[1, 2\]"):
        with transport.named_failures("all_reduce", "bucket", (1, 2)):
            raise RuntimeError("AllReduce failed")


@pytest.mark.slow
def test_a_silent_peer_is_named(tmp_path):
    with Job(2, [str(ROOT / "tests/parallel/silent_worker.py")], tmp_path, MS_NODE_TIMEOUT="10") as job:
        assert job.workers[0].wait(180) == 1
        assert ("rank 0: receive of activations for chunk 0, micro-batch 7 with rank 1 failed after 10"
                in job.logs().replace("\n", " ")), job.logs()
