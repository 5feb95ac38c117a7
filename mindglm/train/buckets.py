"""Where each trained parameter lies in flat vectors, and which part of them each data-parallel rank owns.

Parameters are laid end to end, those with weight decay first, and cut into buckets: the unit in which gradients are
reduced. With `shards` > 1 (ZeRO-1) a bucket is padded to a multiple of that number and rank r owns the r-th equal part
of every bucket: of its gradient sum, its fp32 master weights and its optimizer state. An "owned" vector is what a rank
owns of all buckets, end to end.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor

from mindglm.parallel import transport
from mindglm.train.layout import Layout

ELEMENTS = 2**23
"""Size of a bucket, 32 MB of float32; a larger parameter is a bucket alone."""


@dataclass(frozen=True)
class Bucket:
    """Consecutive parameters, all with weight decay or all without."""

    members: tuple[int, ...]
    """Their numbers in the optimizer's list."""
    decay: bool
    start: int
    """Where it begins in a flat vector."""
    size: int
    """Elements of its parameters."""
    length: int
    """Elements with padding: the next bucket begins at start + length."""
    part: int
    """Elements that each shard owns."""
    owned_start: int
    """Where this rank's part begins in an owned vector."""


class FlatSpace:
    """The buckets of a list of parameters."""

    def __init__(self, params: list[Parameter], decays: list[bool], layout: Layout, sharded: bool,
                 elements: int = ELEMENTS):
        """decays: for each parameter; those that have it come first. sharded: over layout.data_parallel ranks."""
        assert decays == sorted(decays, reverse=True), "parameters with weight decay come first"
        self.params, self.layout = params, layout
        self.shards, self.shard = (layout.data_parallel, layout.data_index) if sharded else (1, 0)
        self.buckets, self.spans = [], {}
        group, start = [], 0
        for i, parameter in enumerate(params):
            full = sum(params[j].size for j in group) + parameter.size > elements
            if group and (full or decays[i] != decays[group[0]]):
                start = self._close(group, decays, start)
                group = []
            group.append(i)
        self.size = self._close(group, decays, start) if group else start
        """Length of a flat vector, padding included."""
        self.owned_size = sum(bucket.part for bucket in self.buckets)
        """Length of an owned vector."""

    def _close(self, group: list[int], decays: list[bool], start: int) -> int:
        size = sum(self.params[i].size for i in group)
        part = -(-size // self.shards)
        owned = sum(bucket.part for bucket in self.buckets)
        self.buckets.append(Bucket(tuple(group), decays[group[0]], start, size, part * self.shards, part, owned))
        place = start
        for i in group:
            self.spans[self.params[i].name] = (place, place + self.params[i].size)
            place = place + self.params[i].size
        return start + part * self.shards

    def named(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """A flat vector as {parameter name: view in its shape}."""
        return {p.name: flat[slice(*self.spans[p.name])].reshape(p.shape) for p in self.params}

    def owned_of(self, bucket: Bucket) -> slice:
        """This rank's part of a bucket in a flat vector."""
        start = bucket.start + self.shard * bucket.part
        return slice(start, start + bucket.part)

    def owned_range(self, bucket: Bucket) -> slice:
        """This rank's part of a bucket in an owned vector."""
        return slice(bucket.owned_start, bucket.owned_start + bucket.part)

    def owned_ranges(self) -> list[tuple[str, int, int, int]]:
        """(parameter, its first value, the one after the last, where they lie in an owned vector) of this rank's part;
        values are counted in the flattened parameter, padding is left out."""
        found = []
        for bucket in self.buckets:
            mine = self.owned_of(bucket)
            for name in (self.params[i].name for i in bucket.members):
                begin, end = self.spans[name]
                start, stop = max(begin, mine.start), min(end, mine.stop)
                if start < stop:
                    found.append((name, start - begin, stop - begin, bucket.owned_start + start - mine.start))
        return found

    def take(self, flat: np.ndarray) -> np.ndarray:
        """What this rank owns of a flat vector: a view when it owns everything, else a copy."""
        if self.shards == 1:
            return flat
        return np.concatenate([flat[self.owned_of(bucket)] for bucket in self.buckets])

    def flat(self, named: dict[str, np.ndarray]) -> np.ndarray:
        """The flat vector of named arrays; padding is 0."""
        values = np.zeros(self.size, np.float32)
        for name, view in self.named(values).items():
            np.copyto(view, named[name])
        return values

    def join(self, owned: np.ndarray) -> np.ndarray:
        """The flat vector whose parts the ranks own: every rank of the data-parallel group gets it, and must ask.

        Without shards this is `owned` itself, else a copy.
        """
        if self.shards == 1:
            return owned
        whole = np.empty(self.size, np.float32)
        for bucket in self.buckets:
            parts = transport.all_gather(Tensor(owned[self.owned_range(bucket)]), self.layout.data_group)
            whole[bucket.start:bucket.start + bucket.length] = parts.asnumpy()
        return whole
