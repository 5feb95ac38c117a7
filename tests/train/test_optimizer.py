"""AdamW against a NumPy reference, its parameter groups, shared storage, and the moving average."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, nn

from mindglm import ops
from mindglm.parallel import transport
from mindglm.recipe import schema
from mindglm.train.ema import Ema, decay_at
from mindglm.train.layout import Layout
from mindglm.train.optimizer import HostAdamW, MintAdamW, build, decays

SECTION = schema.OptimizerSection(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.3, no_decay=("norm", "embed"))
SHAPES = {"up.weight": (5, 3), "embed.table": (4, 2), "up.bias": (5,), "norm.gain": (2, 2), "head": (3, 7)}


class Net(nn.Cell):
    def __init__(self):
        super().__init__(auto_prefix=False)
        for name, shape in SHAPES.items():
            parameter = ops.param(shape, ("normal", 1.0))
            parameter.name = name
            self.insert_param_to_cell(name.replace(".", "_"), parameter)
            parameter.name = name


def net():
    cell = Net()
    ops.init_parameters(cell, 1)
    return cell.trainable_params()


def reference(weights, grads, rates):
    """AdamW of the paper (torch's form) in float64."""
    (b1, b2), eps = SECTION.betas, SECTION.eps
    for name, w in weights.items():
        w, m, v = w.astype(np.float64), 0.0, 0.0
        decay = SECTION.weight_decay if name in ("up.weight", "head") else 0.0
        for t, (grad, lr) in enumerate(zip(grads, rates), 1):
            g = grad[name].astype(np.float64)
            w = w * (1 - lr * decay)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        weights[name] = w
    return weights


def apply(optimizer, flat, lr, updates, scale=1.0):
    """One update from a flat gradient."""
    optimizer.apply([Tensor(flat[optimizer.space.owned_of(bucket)]) for bucket in optimizer.space.buckets], scale, lr,
                    updates)


def random_grads(optimizer, seed):
    return np.random.default_rng(seed).standard_normal(optimizer.size).astype(np.float32)


def test_equals_the_reference_over_steps_and_groups():
    params = net()
    start = {p.name: p.asnumpy().copy() for p in params}
    optimizer = build(params, SECTION)
    assert isinstance(optimizer, HostAdamW)
    rates = [1e-2, 3e-2, 0.0, 5e-3, 2e-2]
    flats = [random_grads(optimizer, seed) for seed in range(len(rates))]
    for updates, (flat, lr) in enumerate(zip(flats, rates), 1):
        apply(optimizer, flat / 4, lr, updates, scale=4.0)
    expected = reference(start, [optimizer.named(flat) for flat in flats], rates)
    for p in params:
        np.testing.assert_allclose(p.asnumpy(), expected[p.name], rtol=0, atol=2e-6)


def test_groups():
    assert decays("up.weight", (5, 3), SECTION.no_decay)
    assert not decays("up.bias", (5,), ()) and not decays("a.norm1.weight", (5, 3), SECTION.no_decay)
    optimizer = build(net(), SECTION)
    assert {p.name for p in optimizer.params[:2]} == {"up.weight", "head"}
    assert [bucket.decay for bucket in optimizer.space.buckets] == [True, False]
    assert [bucket.size for bucket in optimizer.space.buckets] == [15 + 21, 8 + 5 + 4] and optimizer.size == 53


@pytest.mark.parametrize("empty", ["decay", "no decay"])
def test_one_group_may_be_empty(empty):
    parameter = ops.param((3, 2) if empty == "no decay" else (6,), "ones")
    parameter.name = "w"
    optimizer = build([parameter], SECTION)
    apply(optimizer, np.ones(6, np.float32), 0.1, 1)
    assert not np.array_equal(parameter.asnumpy(), np.ones(parameter.shape))


def test_compiled_and_direct_code_see_the_update_and_foreign_storage_is_taken_over():
    """set_data gives a Parameter new storage that a compiled graph never sees; absorb puts the values back in place."""
    params = net()
    optimizer = build(params, SECTION)
    head = next(p for p in params if p.name == "head")

    def total(scale):
        return (head * scale).sum()

    compiled, one = ms.jit(total), Tensor(1.0, ms.float32)
    before = float(compiled(one))
    apply(optimizer, np.ones(optimizer.size, np.float32), 0.1, 1)
    assert float(compiled(one)) == pytest.approx(float(total(one)), rel=1e-6) != before
    head.set_data(head * 2.0)
    optimizer.absorb()
    assert float(compiled(one)) == pytest.approx(float(total(one)), rel=1e-6)
    assert np.array_equal(optimizer.named(optimizer.masters())["head"], head.asnumpy())
    head.copy_(head * 2.0)
    assert np.array_equal(optimizer.named(optimizer.masters())["head"], head.asnumpy())


def test_state_travels_between_both_forms():
    """What a CPU run saves, an Ascend run can load: same names, shapes and count of updates."""
    host = build(net(), SECTION)
    for updates in (1, 2, 3):
        apply(host, random_grads(host, updates), 0.01, updates)
    mint = MintAdamW(net(), SECTION)
    saved = [host.named(moment) for moment in host.moments()]
    for number, arrays in enumerate(saved):
        assert {name: array.shape for name, array in arrays.items()} == SHAPES
        mint.set_moment(number, mint.owned(arrays), 3)
    for moment, arrays in zip(mint.moments(), saved, strict=True):
        assert all(np.array_equal(array, arrays[name]) for name, array in mint.named(moment).items())
    assert float(mint._optimizer.state_step.asnumpy()[0]) == 2.0  # it adds one before its fourth update
    mint.set_masters(host.masters())
    assert np.array_equal(mint.masters(), host.masters())


def test_shards_update_their_parts_as_the_whole_would(monkeypatch):
    """ZeRO-1: moments of a third of the elements (rounded up a bucket), and the same bits as without."""
    monkeypatch.setattr(HostAdamW, "_publish", lambda self: None)
    whole = build(net(), SECTION, elements=16)
    shards = [build(net(), SECTION, Layout(r, 3), True, elements=16) for r in range(3)]
    assert all(len(moment) == shards[0].space.owned_size < 53 / 3 + 5 for moment in shards[0].moments())
    for updates in (1, 2, 3):
        named = whole.named(random_grads(whole, updates))
        for optimizer in (whole, *shards):
            apply(optimizer, optimizer.space.flat(named), 0.05, updates)
    expected = whole.named(whole.masters())
    for shard in shards:
        assert np.array_equal(shard.masters(), shard.owned(expected))
        assert np.array_equal(shard.moments()[1], shard.owned(whole.named(whole.moments()[1])))


def test_bfloat16_weights_over_shards(monkeypatch):
    """ZeRO-1 in the Ascend form, but for the update, which has no CPU kernel: a rank holds float32 masters of its part,
    and the rounded weights of all ranks come together."""
    def optimizer(*layout):
        params = net()
        for p in params:
            p.set_dtype(ms.bfloat16)
        return MintAdamW(params, SECTION, *layout, elements=16)

    whole, shards = optimizer(Layout(), False), [optimizer(Layout(r, 3), True) for r in range(3)]
    whole.set_masters(random_grads(whole, 3))
    named = whole.named(whole.masters())
    for shard in shards:
        shard._set(shard.owned(named))
        assert shard.masters().dtype == np.float32 and len(shard.masters()) < 53 / 3 + 5
    buckets = iter(range(len(shards[1].space.buckets)))

    def all_gather(part, group, tag):
        k = next(buckets)
        assert part.dtype == ms.bfloat16 and tag == "weights"
        return mint.cat([shard._masters[k].astype(ms.bfloat16) for shard in shards])

    monkeypatch.setattr(transport, "all_gather", all_gather)
    shards[1]._publish()
    for ours, theirs in zip(shards[1].params, whole.params):
        assert ours.dtype == ms.bfloat16 and ours.asnumpy().any()
        assert np.array_equal(ours.float().asnumpy(), theirs.float().asnumpy())


def test_bfloat16_weights_have_float32_masters():
    """The Ascend form, as far as a CPU can run it: weights are rounded masters; foreign changes are taken over."""
    params = net()
    for p in params:
        p.set_dtype(ms.bfloat16)
    optimizer = MintAdamW(params, SECTION)
    masters = random_grads(optimizer, 5)
    optimizer.set_masters(masters)
    assert np.array_equal(optimizer.masters(), masters)
    rounded = [Tensor(values).astype(ms.bfloat16).astype(ms.float32).asnumpy() for values in
               optimizer.named(masters).values()]
    assert all(np.array_equal(p.astype(ms.float32).asnumpy(), r) for p, r in zip(optimizer.params, rounded))
    optimizer.absorb()
    assert np.array_equal(optimizer.masters(), masters), "what nobody changed keeps its bits"
    optimizer.params[0].set_data(Tensor(np.ones(optimizer.params[0].shape, np.float32)).astype(ms.bfloat16))
    optimizer.absorb()
    found = optimizer.named(optimizer.masters())
    assert (found[optimizer.params[0].name] == 1).all()
    other = optimizer.params[1].name
    assert np.array_equal(found[other], optimizer.named(masters)[other])


def test_moving_average():
    optimizer = build(net(), SECTION)
    ema = Ema(optimizer, 0.9, 4)
    expected = optimizer.masters().astype(np.float64)
    for step in range(1, 8):
        apply(optimizer, random_grads(optimizer, step), 0.05, step)
        ema.update(step)
        d = 0.9 * min(1, (step - 1) / 4)
        expected = d * expected + (1 - d) * optimizer.masters()
    np.testing.assert_allclose(ema.average, expected, atol=1e-6)
    assert [decay_at(step, 0.8, 0) for step in (1, 9)] == [0.8, 0.8]
    live = optimizer.masters().copy()
    with ema.in_place():
        assert np.array_equal(optimizer.params[0].asnumpy().ravel(), ema.average[:optimizer.params[0].size])
    assert np.array_equal(optimizer.masters(), live)


@pytest.mark.parametrize("kind", [HostAdamW, MintAdamW])
def test_whoever_copies_the_state_is_asked_before_it_changes(kind, monkeypatch):
    """Every way to change weights, moments or average asks first, when all of them are still as they were."""
    monkeypatch.setattr(mint.optim.AdamW, "construct", lambda self, grads: None)  # it has no CPU kernel
    optimizer = kind(net(), SECTION)
    average = Ema(optimizer, 0.9, 0)
    grads = [Tensor(np.ones(bucket.part, np.float32)) for bucket in optimizer.space.buckets]
    new = optimizer.masters() + 1

    def vectors():
        return [vector.copy() for vector in (optimizer.masters(), *optimizer.moments(), average.average)]

    def moved():
        with average.in_place():
            optimizer.params[0].set_data(optimizer.params[0] + 1)
            optimizer.absorb()

    for change in (lambda: (optimizer.apply(grads, 1.0, 0.1, 1), average.update(1)),
                   lambda: optimizer.set_masters(new), lambda: optimizer.set_moment(0, new, 1), moved):
        before, asked = vectors(), []

        def ask():
            asked.append(all(np.array_equal(a, b) for a, b in zip(before, vectors())))

        optimizer.before_change = ask
        change()
        assert asked and asked[0]
