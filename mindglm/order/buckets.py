"""Which size of picture a step takes, when a dataset holds several: buckets.

A global batch holds one bucket, so that every layout splits it alike. A bucket's batches follow each other as those of
a dataset of its own: without a gap, every sample once an epoch of the bucket. Each bucket is taken as often as its
share of the samples asks, so that the epochs of all buckets keep pace: at every step a bucket is within DISCREPANCY
batches of its share, and exactly at it after every (samples / greatest common divisor of the counts) steps.

How a step is answered without walking there: the buckets are the leaves of a Huffman tree of their counts. The steps
that come to a node are cut into strata, as many steps long as the node has samples for one of its smaller side, and
that side takes one step of each stratum, drawn at random: evenly spread, yet a run that logs or validates every n-th
step still meets all buckets. How many steps went to that side before is then the number of the stratum, or one more. So
a node errs by less than one batch, and what it passes on shrinks by half in two levels of such a tree: less than
(1 + 1) (1 + 1/2 + 1/4 ...) batches at a leaf.
"""

import functools
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindglm.order.randomness import rng
from mindglm.order.samples import batch_ids

DISCREPANCY = 4


@dataclass(frozen=True)
class _Node:
    """A bucket, or two nodes."""

    number: int
    """Of the bucket; nodes that are none have numbers behind those of the buckets."""
    count: int
    """Samples below it."""
    sides: tuple["_Node", ...] = ()
    """The smaller one first."""


@functools.lru_cache(maxsize=16)
def _tree(counts: tuple[int, ...]) -> _Node:
    """The Huffman tree of the buckets that hold samples; of equal counts the lower number first."""
    heap = [(count, bucket, _Node(bucket, count)) for bucket, count in enumerate(counts) if count]
    assert heap and min(counts) >= 0, counts
    heapq.heapify(heap)
    for number in range(len(counts), len(counts) + len(heap) - 1):
        (small, _, left), (large, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (small + large, number, _Node(number, small + large, (left, right))))
    return heap[0][2]


def _first_side(seed: int, node: _Node, step: int) -> tuple[bool, int]:
    """Whether a step that comes to a node goes to its first side, and how many before it did."""
    share, whole = node.sides[0].count, node.count
    stratum = step * share // whole
    start, stop = (-(-n * whole // share) for n in (stratum, stratum + 1))
    taken = start + int(rng(seed, stratum, node.number, "bucket order").integers(stop - start))
    return step == taken, stratum + int(taken < step)


def bucket_turn(seed: int, step: int, counts: Sequence[int]) -> tuple[int, int]:
    """(bucket that optimizer step `step` (from 0) takes, how many steps before it took that bucket).

    counts: samples of each bucket; an empty one is never taken.
    """
    node, step = _tree(tuple(map(int, counts))), int(step)
    while node.sides:
        first, before = _first_side(seed, node, step)
        node, step = (node.sides[0], before) if first else (node.sides[1], step - before)
    return node.number, step


def bucket_batch(seed: int, step: int, global_batch: int, members: Sequence[np.ndarray]) -> tuple[int, np.ndarray]:
    """(bucket, sample ids (global_batch,)) of optimizer step `step` (from 0).

    members: the sample ids of each bucket. With one bucket of the ids 0, 1, 2 ... these are those of `batch_ids`.
    """
    bucket, turn = bucket_turn(seed, step, [len(ids) for ids in members])
    own = members[bucket]
    return bucket, own[batch_ids(seed, turn, global_batch, len(own), bucket)]


def mix(samples: int, counts: Sequence[int]) -> tuple[int, ...]:
    """How many of `samples` samples to take of each bucket: in proportion to its count, rounded by largest remainder.

    All of them, where there are not as many; the sum is min(samples, sum of counts).
    """
    counts, total = [int(count) for count in counts], int(sum(counts))
    wanted = min(samples, total)
    taken = [wanted * count // total if total else 0 for count in counts]
    order = sorted(range(len(counts)), key=lambda i: (-(wanted * counts[i] % total), i) if total else i)
    for i in order[:wanted - sum(taken)]:
        taken[i] += 1
    return tuple(taken)
