"""AdamW against a NumPy reference, its parameter groups, shared storage, and the moving average."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindglm import ops
from mindglm.recipe import schema
from mindglm.train.ema import Ema, decay_at
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
        optimizer.apply(Tensor(flat), lr, updates)
    expected = reference(start, [optimizer.named(flat) for flat in flats], rates)
    for p in params:
        np.testing.assert_allclose(p.asnumpy(), expected[p.name], rtol=0, atol=2e-6)


def test_groups():
    assert decays("up.weight", (5, 3), SECTION.no_decay)
    assert not decays("up.bias", (5,), ()) and not decays("a.norm1.weight", (5, 3), SECTION.no_decay)
    optimizer = build(net(), SECTION)
    assert {p.name for p in optimizer.params[:2]} == {"up.weight", "head"}
    assert optimizer.split == 15 + 21 and optimizer.size == sum(int(np.prod(s)) for s in SHAPES.values())


@pytest.mark.parametrize("empty", ["decay", "no decay"])
def test_one_group_may_be_empty(empty):
    parameter = ops.param((3, 2) if empty == "no decay" else (6,), "ones")
    parameter.name = "w"
    optimizer = build([parameter], SECTION)
    optimizer.apply(Tensor(np.ones(6, np.float32)), 0.1, 1)
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
    optimizer.apply(Tensor(np.ones(optimizer.size, np.float32)), 0.1, 1)
    assert float(compiled(one)) == pytest.approx(float(total(one)), rel=1e-6) != before
    head.set_data(head * 2.0)
    optimizer.absorb()
    assert float(compiled(one)) == pytest.approx(float(total(one)), rel=1e-6)
    assert np.array_equal(optimizer.named(optimizer.weights())["head"], head.asnumpy())
    head.copy_(head * 2.0)
    assert np.array_equal(optimizer.named(optimizer.weights())["head"], head.asnumpy())


def test_state_travels_between_both_forms():
    """What a CPU run saves, an Ascend run can load: same names, shapes and count of updates."""
    host = build(net(), SECTION)
    for updates in (1, 2, 3):
        host.apply(Tensor(random_grads(host, updates)), 0.01, updates)
    state = {name: array.copy() for name, array in host.state().items()}
    assert set(state) == {f"{kind}.{name}" for kind in ("adam_m", "adam_v") for name in SHAPES}
    mint = MintAdamW(net(), SECTION)
    mint.load_state(state, 3)
    assert all(np.array_equal(array, state[name]) for name, array in mint.state().items())
    assert float(mint._optimizer.state_step.asnumpy()[0]) == 2.0  # it adds one before its fourth update
    mint.set_weights(host.weights())
    assert np.array_equal(mint.weights(), host.weights())


def test_moving_average():
    optimizer = build(net(), SECTION)
    ema = Ema(optimizer, 0.9, 4)
    expected = optimizer.weights().astype(np.float64)
    for step in range(1, 8):
        optimizer.apply(Tensor(random_grads(optimizer, step)), 0.05, step)
        ema.update(step)
        d = 0.9 * min(1, (step - 1) / 4)
        expected = d * expected + (1 - d) * optimizer.weights()
    np.testing.assert_allclose(ema.average, expected, atol=1e-6)
    assert [decay_at(step, 0.8, 0) for step in (1, 9)] == [0.8, 0.8]
    live = optimizer.weights().copy()
    with ema.in_place():
        assert np.array_equal(optimizer.params[0].asnumpy().ravel(), ema.average[:optimizer.params[0].size])
    assert np.array_equal(optimizer.weights(), live)
