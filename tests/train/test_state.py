"""A checkpoint belongs to no layout: written under one, read under another, by ranges, for every pair of layouts."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from mindglm.checkpoint import store
from mindglm.checkpoint.stored import Checkpoint
from mindglm.train import state
from mindglm.train.buckets import FlatSpace
from mindglm.train.layout import Layout

SHAPES = {"a.weight": (5, 3), "b.weight": (7, 2), "c.weight": (4, 4), "d.weight": (1, 11), "a.bias": (3,),
          "c.bias": (1,)}
LAYOUTS = [(1, 1, False), (2, 1, False), (2, 1, True), (3, 1, True), (4, 1, True), (1, 2, False), (1, 3, False),
           (2, 2, True), (3, 2, False), (4, 2, True)]
"""(data parallel, stages, ZeRO-1)"""


def ranks(dp: int, stages: int, zero: bool, elements: int = 20):
    """The optimizer of every rank: what it owns of three vectors whose values tell name and place."""
    names = sorted(SHAPES, key=lambda name: name.endswith("bias"))
    for stage, index in itertools.product(range(stages), range(dp)):
        held = [name for i, name in enumerate(names) if i % stages == stage]
        params = [SimpleNamespace(name=name, shape=SHAPES[name], size=int(np.prod(SHAPES[name]))) for name in held]
        decays = [not name.endswith("bias") for name in held]
        space = FlatSpace(params, decays, Layout(index, dp, stage, stages), zero, elements)
        vectors = [space.take(space.flat({name: values(name) + add for name in held})) for add in (0, 1000, 2000, 3000)]
        yield SimpleNamespace(space=space, params=params, masters=lambda v=vectors: v[0],
                              moments=lambda v=vectors: v[1:3], average=vectors[3], shapes=held)


def values(name: str) -> np.ndarray:
    start = 100 * list(SHAPES).index(name)
    return np.arange(start, start + np.prod(SHAPES[name]), dtype=np.float32).reshape(SHAPES[name])


def write(root, layout) -> Checkpoint:
    folder, listings = store.staging(root, 1), []
    store.begin(folder)
    dp, stages, _ = layout
    for rank, optimizer in enumerate(ranks(*layout)):
        frozen = SimpleNamespace(shape=(2,), dtype=None, asnumpy=lambda: np.array([-1, -2], np.float32))
        parts = state.owned_parts({f"frozen.{optimizer.space.layout.stage}": frozen}, optimizer, optimizer,
                                  lambda name, array: array)
        listings.append(store.write_part(folder, parts, "run", rank, dp * stages))
    return Checkpoint(store.commit(folder, listings, store.texts({}, "")))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_reads_what_every_layout_wrote(tmp_path, layout):
    """Written under `layout`, read under each: every rank finds exactly what it owns, padding left at zero."""
    checkpoint = write(tmp_path, layout)
    whole = store.load(tmp_path).tensors
    for name in SHAPES:
        assert np.array_equal(whole["model"][name], values(name))
        assert np.array_equal(whole["opt"][f"adam_v.{name}"], values(name) + 2000)
        assert np.array_equal(whole["ema"][name], values(name) + 3000)
    assert {name for name in whole["model"] if name.startswith("frozen")} == {
        f"frozen.{stage}" for stage in range(layout[1])}
    for other in LAYOUTS:
        for optimizer in ranks(*other):
            for kind, prefix, wanted in (("model", "", optimizer.masters()), ("opt", "adam_m.", optimizer.moments()[0]),
                                         ("opt", "adam_v.", optimizer.moments()[1]), ("ema", "", optimizer.average)):
                found = np.zeros(optimizer.space.owned_size, np.float32)
                for name, start, stop, place in optimizer.space.owned_ranges():
                    checkpoint.kinds[kind].read(prefix + name, found[place:place + stop - start], start)
                assert np.array_equal(found, wanted), (layout, other, kind)


def test_no_rank_writes_what_another_keeps_as_well(tmp_path):
    """Without ZeRO-1 one replica writes; with it each rank writes its part, and all parts together are the state."""
    for layout in LAYOUTS:
        dp, stages, zero = layout
        sizes = [sum(part.values.size for parts in state.owned_parts({}, optimizer, None, lambda name, array: array)
                     .values() for part in parts) for optimizer in ranks(*layout)]
        assert sum(sizes) == 3 * sum(int(np.prod(shape)) for shape in SHAPES.values())
        assert sum(size > 0 for size in sizes) == (dp * stages if zero else stages)
