"""Which samples make up which global batch."""

import functools

import numpy as np

from mindglm.order.randomness import rng


@functools.lru_cache(maxsize=64)
def _orders(seed: int, n: int, bucket: int):
    """epoch -> its order; a batch needs two epochs at most unless it is larger than the bucket."""

    @functools.lru_cache(maxsize=2)
    def of_epoch(epoch: int) -> np.ndarray:
        order = rng(seed, epoch, bucket, "epoch order").permutation(n)
        order.flags.writeable = False  # shared by all callers
        return order

    return of_epoch


def epoch_order(seed: int, epoch: int, n: int, bucket: int = 0) -> np.ndarray:
    """A permutation of 0..n-1 (int64, read-only) for this epoch; another one for each bucket (order/buckets.py)."""
    assert n > 0 and epoch >= 0, (n, epoch)
    return _orders(seed, n, bucket)(epoch)


def batch_ids(seed: int, step: int, global_batch: int, n: int, bucket: int = 0) -> np.ndarray:
    """Sample ids (global_batch,) of optimizer step `step` (from 0).

    Epochs follow each other without a gap: a batch may end one and begin the next, so within an epoch every sample
    comes exactly once and none is dropped; a batch larger than the dataset holds a sample more than once.
    """
    positions = np.arange(step * global_batch, (step + 1) * global_batch)
    ids = np.empty(global_batch, np.int64)
    for epoch in np.unique(positions // n):
        here = positions // n == epoch
        ids[here] = epoch_order(seed, int(epoch), n, bucket)[positions[here] % n]
    return ids
