"""Caches of reference images put together: several images of a sample, then several samples (reference section 2.6).

Shapes as in model.py: n samples, H heads, R reference tokens, K head width.
"""

import numpy as np
from mindspore import Tensor, mint

from mindglm import ops
from mindglm.models.dit_decoder.model import Cache


def join_images(caches: list[Cache]) -> Cache:
    """The images of one sample, in order: tokens one after the other. They do not see each other."""
    if len(caches) == 1:
        return caches[0]
    return tuple(tuple(ops.concat(parts, 2) for parts in zip(*blocks)) for blocks in zip(*caches))


def stack_samples(caches: list[Cache]) -> tuple[Cache, np.ndarray | None]:
    """The Caches (n = 1) of several samples as one, and the mask bool (n, R) of real tokens, None when all are.

    Samples with fewer tokens are padded at the end with zeros; without the mask they would be attended.
    """
    lengths = [cache[0][0].shape[2] for cache in caches]
    if len(caches) == 1:
        return caches[0], None
    longest = max(lengths)
    padded = [cache if length == longest else _padded(cache, longest - length)
              for cache, length in zip(caches, lengths)]
    stacked = tuple(tuple(ops.concat(parts, 0) for parts in zip(*blocks)) for blocks in zip(*padded))
    if min(lengths) == longest:
        return stacked, None
    return stacked, np.arange(longest)[None] < np.asarray(lengths)[:, None]


def _padded(cache: Cache, count: int) -> Cache:
    def end(x: Tensor) -> Tensor:
        n, heads, _, width = x.shape
        return ops.concat((x, mint.zeros((n, heads, count, width), dtype=x.dtype)), 2)

    return tuple((end(k), end(v)) for k, v in cache)
