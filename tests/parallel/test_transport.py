"""Alone, the transport does nothing and needs nothing."""

import numpy as np
from mindspore import Tensor

from mindglm.parallel import transport


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
