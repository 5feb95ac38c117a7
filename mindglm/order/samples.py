"""Which samples make up which global batch."""

import functools

import numpy as np

from mindglm.order.randomness import rng


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    order = rng(seed, epoch, 0, "epoch order").permutation(n)
    order.flags.writeable = False  # shared by all callers
    return order


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of 0..n-1 (int64, read-only) for this epoch."""
    assert n > 0 and epoch >= 0, (n, epoch)
    return _order(seed, epoch, n)


def batch_ids(seed: int, step: int, global_batch: int, n: int) -> np.ndarray:
    """Sample ids (global_batch,) of optimizer step `step` (from 0).

    Epochs follow each other without a gap: a batch may end one and begin the next, so within an epoch every sample
    comes exactly once and none is dropped; a batch larger than the dataset holds a sample more than once.
    """
    positions = np.arange(step * global_batch, (step + 1) * global_batch)
    ids = np.empty(global_batch, np.int64)
    for epoch in np.unique(positions // n):
        here = positions // n == epoch
        ids[here] = epoch_order(seed, int(epoch), n)[positions[here] % n]
    return ids
