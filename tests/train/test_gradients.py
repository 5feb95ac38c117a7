"""Flat space and its shards, sums over micro-batches, and the tree whose sum no layout changes."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindglm.parallel import transport
from mindglm.train.buckets import FlatSpace
from mindglm.train.gradients import RunningSum, TreeSum, tree_nodes, tree_sum
from mindglm.train.layout import Layout

SHAPES = [(5, 3), (2, 2), (7,), (3,)]


def space(layout=Layout(), sharded=False, elements=8):
    params = [Parameter(Tensor(np.zeros(shape, np.float32)), name=f"p{i}") for i, shape in enumerate(SHAPES)]
    return FlatSpace(params, [True, True, False, False], layout, sharded, elements)


def test_buckets_do_not_mix_decay_and_hold_large_parameters_alone():
    flat = space()
    assert [bucket.members for bucket in flat.buckets] == [(0,), (1,), (2,), (3,)]
    assert [bucket.members for bucket in space(elements=100).buckets] == [(0, 1), (2, 3)]
    assert flat.size == flat.owned_size == 15 + 4 + 7 + 3
    values = {p.name: np.random.default_rng(i).standard_normal(p.shape).astype(np.float32)
              for i, p in enumerate(flat.params)}
    assert all(np.array_equal(array, values[name]) for name, array in flat.named(flat.flat(values)).items())


@pytest.mark.parametrize("elements", [8, 100])
def test_shards_cover_every_bucket_once(monkeypatch, elements):
    ranks = [space(Layout(data_index=r, data_parallel=3), True, elements) for r in range(3)]
    values = {p.name: np.arange(p.size, dtype=np.float32).reshape(p.shape) + 100 * i
              for i, p in enumerate(ranks[0].params)}
    owned = [rank.take(rank.flat(values)) for rank in ranks]
    assert len({len(part) for part in owned}) == 1 and len(owned[0]) == ranks[0].owned_size == ranks[0].size // 3

    def all_gather(tensor, group):
        """What the others would have sent: found by what this rank sends."""
        for bucket in ranks[0].buckets:
            parts = [part[ranks[0].owned_range(bucket)] for part in owned]
            if np.array_equal(parts[1], tensor.asnumpy()):
                return Tensor(np.concatenate(parts))
        raise AssertionError("no such part")

    monkeypatch.setattr(transport, "all_gather", all_gather)
    joined = ranks[1].named(ranks[1].join(owned[1]))
    assert all(np.array_equal(array, values[name]) for name, array in joined.items())


def grads(seed):
    rng = np.random.default_rng(seed)
    return [Tensor((rng.standard_normal(shape) * 10.0**rng.integers(-3, 4)).astype(np.float32)) for shape in SHAPES]


def test_running_sum_reduces_in_one_order_and_fills_gaps(monkeypatch):
    """Buckets go out in the order of the backward pass even when gradients come otherwise; None is zero."""
    sent = []
    monkeypatch.setattr(transport, "begin_all_reduce_sum", lambda flat, group, tag: sent.append(tag) or (lambda: flat))
    flat = space(Layout(data_index=1, data_parallel=2))
    sums = RunningSum(flat, ["p0", "p2", "p1", "p3"])
    for i in range(2):
        for number in (0, 3, 1, 2):
            sums.add(number, None if number == 2 else grads(i)[number], i, last=i == 1)
            if (i, number) == (1, 0):
                assert not sent
    parts = sums.finish()
    assert sent == [f"gradient bucket {k}" for k in (3, 1, 2, 0)]
    assert not parts[2].asnumpy().any() and sums.squares() == []  # another rank of the group tells the norm
    np.testing.assert_array_equal(parts[1].asnumpy().reshape(2, 2), (grads(0)[1] + grads(1)[1]).asnumpy())
    with pytest.raises(AssertionError, match="missing"):
        sums.begin()
        sums.finish()


def test_bfloat16_reduction_rounds(monkeypatch):
    monkeypatch.setattr(transport, "begin_all_reduce_sum", lambda flat, group, tag: lambda: flat)
    sums = RunningSum(space(Layout(data_parallel=2)), ["p0", "p1", "p2", "p3"], ms.bfloat16)
    for number, grad in enumerate(grads(0)):
        sums.add(number, grad, 0, last=True)
    part = sums.finish()[0].asnumpy()
    exact = grads(0)[0].asnumpy().reshape(-1)
    assert part.dtype == np.float32 and 0 < abs(part / exact - 1).max() < 2**-8


@pytest.mark.parametrize("leaves", [1, 2, 3, 6, 8, 12, 13])
def test_tree_sum_has_the_same_bits_however_leaves_are_split(leaves):
    rng = np.random.default_rng(leaves)
    values = (rng.standard_normal((leaves, 50)) * 10.0**rng.integers(-4, 5, (leaves, 50))).astype(np.float32)
    whole = tree_sum({(0, i): value for i, value in enumerate(values)}, leaves)
    np.testing.assert_allclose(whole, values.astype(np.float64).sum(0), atol=1e-7 * abs(values).sum(0).max())
    for ranks in range(1, leaves + 1):
        if leaves % ranks:
            continue
        nodes = {}
        for start in range(0, leaves, leaves // ranks):
            for level, i in tree_nodes(start, start + leaves // ranks):
                part = {(0, j): values[(i << level) + j] for j in range(1 << level)}
                nodes[level, i] = tree_sum(part, 1 << level)
        assert tree_sum(nodes, leaves).tobytes() == whole.tobytes(), ranks


def exchanged(monkeypatch, ranks, per_rank, order):
    """What every rank's TreeSum gives, the exchange made by hand."""
    flats = [space(Layout(data_index=r, data_parallel=ranks)) for r in range(ranks)]
    trees, rows = [TreeSum(flat, per_rank) for flat in flats], {}
    for r, tree in enumerate(trees):
        for i in order(range(per_rank)):
            for number, grad in enumerate(grads(r * per_rank + i)):
                tree.add(number, grad, i, False)

    def gather(array, group):
        rows.setdefault(array.shape[1], []).append(array)
        return np.concatenate((rows[array.shape[1]] + [array] * ranks)[:ranks])

    monkeypatch.setattr(transport, "gather", gather)
    for tree in trees[:-1]:  # fills `rows`; only the last rank then knows all of them
        tree.finish()
    parts = trees[-1].finish()
    return [part.asnumpy() for part in parts], trees[-1]


def test_tree_of_micro_batches_does_not_know_ranks_or_order(monkeypatch):
    one, tree = exchanged(monkeypatch, 1, 6, list)
    assert sum(tree.squares()) == pytest.approx(sum((part.astype(np.float64)**2).sum() for part in one), rel=1e-12)
    for ranks, order in ((1, reversed), (2, list), (3, reversed), (6, list)):
        parts, _ = exchanged(monkeypatch, ranks, 6 // ranks, order)
        assert [part.tobytes() for part in parts] == [part.tobytes() for part in one], ranks
    ordinary = RunningSum(space(), ["p0", "p1", "p2", "p3"])
    for i in range(6):
        for number, grad in enumerate(grads(i)):
            ordinary.add(number, grad, i, last=i == 5)
    for part, other in zip(ordinary.finish(), one):
        np.testing.assert_allclose(part.asnumpy(), other, rtol=1e-4)
