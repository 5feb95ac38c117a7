"""What the pipeline relies on in MindSpore's private tape; an upgrade that changes it fails here by name."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, mint

from mindglm import ops
from mindglm.ops import tape

RNG = np.random.default_rng(0)
ONE = Tensor(1.0, ms.float32)


def values(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


@pytest.fixture
def weight():
    return Parameter(Tensor(values(4, 4)), name="w")


def forward(x, w):
    return (ops.silu(ops.linear(x, w)) * x).sum()


def expected(x, w):
    """(dx, dw) by the public function."""
    dx, dw = ms.grad(lambda t: forward(t, w), 0, [w])(Tensor(x))
    return dx.asnumpy(), dw[0].asnumpy()


def test_several_forwards_in_flight_backward_in_any_order(weight):
    arrays = [values(3, 4) for _ in range(3)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        leaves = [tape.leaf(Tensor(x)) for x in arrays]
        with tape.recording():
            outputs = [forward(x, weight) for x in leaves]
        for i in order:
            found = tape.backward([outputs[i]], [ONE], [leaves[i], weight])
            for gradient, right in zip(found, expected(arrays[i], weight)):
                np.testing.assert_array_equal(gradient.asnumpy(), right)


def test_several_outputs_and_unreachable_inputs(weight):
    other, x = Parameter(Tensor(values(4)), name="other"), tape.leaf(Tensor(values(3, 4)))
    with tape.recording():
        y = ops.linear(x, weight)
        z = x * 2.0
    gy, gz = values(3, 4), values(3, 4)
    dx, nothing = tape.backward([y, z], [Tensor(gy), Tensor(gz)], [x, other])
    np.testing.assert_allclose(dx.asnumpy(), gy @ weight.asnumpy() + 2 * gz, rtol=1e-5, atol=1e-6)
    assert nothing is None


def test_a_used_graph_cannot_be_used_again(weight):
    x = tape.leaf(Tensor(values(3, 4)))
    with tape.recording():
        y = forward(x, weight)
    tape.backward([y], [ONE], [x], keep=True)
    tape.backward([y], [ONE], [weight])
    with pytest.raises(RuntimeError):
        tape.backward([y], [ONE], [weight])


def test_nothing_is_recorded_outside(weight):
    with tape.recording():
        with tape.recording(False):
            y = forward(Tensor(values(3, 4)), weight)
    with pytest.raises(RuntimeError):
        tape.backward([y], [ONE], [weight])


def test_a_cut_chain_adds_gradients_in_the_order_of_the_whole_one():
    """A tensor that every block reads and that crosses a cut: bit for bit the undivided gradient (`same`)."""
    scales = [Tensor((values(64) * 10 ** RNG.uniform(-3, 3, 64)).astype(np.float32)) for _ in range(4)]
    start, shared, one = Tensor(np.zeros(64, np.float32)), values(64), Tensor(np.ones(64, np.float32))

    def chain(x, t, some):
        for scale in some:
            x = x * 0.9 + t * scale
        return x

    t = tape.leaf(Tensor(shared))
    with tape.recording():
        y = chain(start, t, scales)
    whole = tape.backward([y], [one], [t])[0].asnumpy()
    first = tape.leaf(Tensor(shared))
    with tape.recording():
        x, handed_on = chain(start, first, scales[:2]), tape.same(first)
    second, carried = tape.leaf(handed_on), tape.leaf(x)
    with tape.recording():
        y = chain(carried, second, scales[2:])
    g_second, g_carried = tape.backward([y], [one], [second, carried])
    cut = tape.backward([x, handed_on], [g_carried, g_second], [first])[0].asnumpy()
    assert (cut == whole).all()
    parts = [(np.float32(0.9) ** (3 - i) * scale.asnumpy()) for i, scale in enumerate(scales)]
    assert (sum(parts) != whole).any(), "the order must matter here"


@pytest.mark.parametrize("public", [True, False])
def test_recomputed(weight, public):
    """Values and gradients of the plain function, under the tape and under value_and_grad; several results too."""
    x, b = values(3, 4), values(4)
    calls = []

    def function(t, u):
        calls.append(1)
        return ops.silu(ops.linear(t, weight)) + u, t * u

    def both(t, u, wrapped):
        y, z = tape.recomputed(function, (t, u), [weight]) if wrapped else function(t, u)
        return (y * y + mint.sin(z)).sum()

    def gradients(wrapped):
        if public:
            (dx, db), (dw,) = ms.grad(lambda t, u: both(t, u, wrapped), (0, 1), [weight])(Tensor(x), Tensor(b))
            return dx, db, dw
        t, u = tape.leaf(Tensor(x)), tape.leaf(Tensor(b))
        with tape.recording():
            y = both(t, u, wrapped)
        return tape.backward([y], [ONE], [t, u, weight])

    plain = gradients(False)
    before = len(calls)
    again = gradients(True)
    assert len(calls) == before + 2, "once forward, once in the backward pass"
    for a, c in zip(again, plain):
        np.testing.assert_array_equal(a.asnumpy(), c.asnumpy())
