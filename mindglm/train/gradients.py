"""Gradients of a step: added up over the micro-batches of this rank, then over the data-parallel ranks.

Both classes take gradients of micro-batches by `add` and give, by `finish`, this rank's part of each bucket of the sum
over all micro-batches of all ranks.

RunningSum adds in the order in which gradients come and lets the collective add over ranks: quick, and the last bits
depend on the layout. TreeSum (strict_numerics) adds along one binary tree over all micro-batches of the global batch,
whoever computed them: for micro-batches of one size the same bits in every layout.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from mindglm import ops
from mindglm.parallel import transport
from mindglm.train.buckets import FlatSpace


class RunningSum:
    """Ordinary sums, reduced bucket by bucket.

    A bucket is reduced as soon as the last micro-batch has given its last gradient, while the backward goes on with
    other parameters. The order of the collectives is fixed and the same on all ranks, whatever the order in which
    gradients come.
    """

    def __init__(self, space: FlatSpace, registered: list[str], reduce_dtype=ms.float32):
        """registered: names of the parameters in the order of the forward pass; gradients come in the reverse one."""
        self._space, self._dtype = space, reduce_dtype
        place = {name: i for i, name in enumerate(registered)}
        self._order = sorted(range(len(space.buckets)), reverse=True, key=lambda k: min(
            place[space.params[i].name] for i in space.buckets[k].members))
        """Buckets as they become complete in a backward pass."""
        self._home = {i: k for k, bucket in enumerate(space.buckets) for i in bucket.members}
        self.begin()

    def begin(self) -> None:
        """Forget everything: a new step."""
        self._sums = [None] * len(self._space.params)
        self._complete = [0] * len(self._space.buckets)
        self._pending, self._reduced = list(self._order), {}

    def add(self, number: int, grad: Tensor | None, micro_batch: int, last: bool) -> None:
        """The gradient of parameter `number` from a micro-batch; None: it has none. last: no other will follow."""
        before = self._sums[number]
        if grad is not None:
            grad = grad.astype(ms.float32) if grad.dtype != ms.float32 else grad
            self._sums[number] = grad if before is None else before + grad
        if last:
            bucket = self._home[number]
            self._complete[bucket] = self._complete[bucket] + 1
            self._launch()

    def _launch(self) -> None:
        """Reduce the complete buckets that are next in order."""
        while self._pending:
            k = self._pending[0]
            if self._complete[k] < len(self._space.buckets[k].members):
                return
            self._reduced[k] = self._reduce(k)
            self._pending.pop(0)

    def _reduce(self, k: int):
        """Begin the reduction of bucket k; returns a function that waits for this rank's part."""
        bucket, group = self._space.buckets[k], self._space.layout.data_group
        flat = self._flat(bucket)
        if self._space.layout.data_parallel == 1:
            return lambda: flat
        flat = flat if self._dtype == ms.float32 else flat.astype(self._dtype)
        if self._space.shards > 1:
            return transport.begin_reduce_scatter_sum(flat, group, f"gradient bucket {k}")
        return transport.begin_all_reduce_sum(flat, group, f"gradient bucket {k}")

    def _flat(self, bucket) -> Tensor:
        """The sums of a bucket end to end, float32 (bucket.length,)."""
        pieces = []
        for i in bucket.members:
            parameter, total = self._space.params[i], self._sums[i]
            pieces.append(mint.zeros((parameter.size,)) if total is None else total.reshape(-1))
            self._sums[i] = None
        if bucket.length > bucket.size:
            pieces.append(mint.zeros((bucket.length - bucket.size,)))
        return ops.end_to_end(pieces)

    def finish(self) -> list[Tensor]:
        """This rank's part of each bucket, float32."""
        assert not self._pending, "gradients are missing"
        parts, self._squares = [], []
        for k in range(len(self._space.buckets)):
            part = self._reduced[k]()
            part = part if part.dtype == ms.float32 else part.astype(ms.float32)
            self._squares.append(ops.sum_of_squares(part))
            parts.append(part)
        return parts

    def squares(self) -> list[float]:
        """After `finish`: numbers that, added up over all ranks of the run, give the squared norm of the gradient."""
        copies = self._space.shards == 1 and self._space.layout.data_index > 0
        return [] if copies else [float(square.asnumpy()) for square in self._squares]


class TreeSum:
    """The sum along a fixed binary tree over the micro-batches of the global batch, numbered in the order of samples.

    Node (level, i) is the sum of micro-batches i * 2^level to (i + 1) * 2^level - 1. A rank adds up the nodes that lie
    within its own micro-batches; the ranks then exchange those and each adds up the rest.
    """

    def __init__(self, space: FlatSpace, per_rank: int):
        """per_rank: micro-batches of each data-parallel rank."""
        self._space, self._per_rank = space, per_rank
        self._total = per_rank * space.layout.data_parallel
        self.begin()

    def begin(self) -> None:
        """Forget everything: a new step."""
        self._nodes = [{} for _ in self._space.params]

    def add(self, number: int, grad: Tensor | None, micro_batch: int, last: bool) -> None:
        """The gradient of parameter `number` from this rank's micro-batch `micro_batch`, in any order."""
        parameter = self._space.params[number]
        node = np.zeros(parameter.size, np.float32) if grad is None else grad.asnumpy().reshape(-1).copy()
        nodes, level = self._nodes[number], 0
        i = micro_batch + self._per_rank * self._space.layout.data_index
        while (level, i ^ 1) in nodes:
            other = nodes.pop((level, i ^ 1))
            node = node + other if i % 2 == 0 else other + node
            level, i = level + 1, i // 2
        nodes[level, i] = node

    def finish(self) -> list[Tensor]:
        """This rank's part of each bucket, float32."""
        layout, parts, self._squares = self._space.layout, [], []
        keys = [tree_nodes(r * self._per_rank, (r + 1) * self._per_rank) for r in range(layout.data_parallel)]
        mine, most = keys[layout.data_index], max(map(len, keys))
        for bucket in self._space.buckets:
            rows = np.zeros((most, bucket.length), np.float32)
            for row, key in zip(rows, mine):
                np.concatenate([self._nodes[i].pop(key) for i in bucket.members], out=row[:bucket.size])
            everyone = transport.gather(rows, layout.data_group).reshape(layout.data_parallel, most, bucket.length)
            nodes = {key: row for rank_keys, rank_rows in zip(keys, everyone) for key, row in zip(rank_keys, rank_rows)}
            whole = tree_sum(nodes, self._total) + np.float32(0)  # a sum of zeros has no sign: collectives lose it
            ends = np.cumsum([self._space.params[i].size for i in bucket.members]).tolist()
            self._squares += [float(np.square(whole[a:b], dtype=np.float64).sum()) for a, b in zip([0, *ends], ends)]
            own = self._space.owned_of(bucket)
            parts.append(Tensor(whole[own.start - bucket.start:own.stop - bucket.start]))
        return parts

    def squares(self) -> list[float]:
        """As RunningSum.squares: one number a parameter, whatever the layout."""
        return self._squares if self._space.layout.data_index == 0 else []


def tree_nodes(start: int, stop: int) -> list[tuple[int, int]]:
    """The largest nodes (level, i) that together cover the leaves start..stop-1."""
    found = []
    while start < stop:
        level = (start & -start).bit_length() - 1 if start else (stop - start).bit_length()
        while start + (1 << level) > stop:
            level = level - 1
        found.append((level, start >> level))
        start = start + (1 << level)
    return found


def tree_sum(nodes: dict[tuple[int, int], np.ndarray], leaves: int) -> np.ndarray:
    """The root over `leaves` leaves, of which `nodes` hold the sums; a node without a second half is its first half."""
    def value(level: int, i: int) -> np.ndarray:
        if (level, i) in nodes:
            return nodes[level, i]
        left = value(level - 1, 2 * i)
        return left + value(level - 1, 2 * i + 1) if (2 * i + 1) << (level - 1) < leaves else left

    return value((leaves - 1).bit_length(), 0)
