"""The composed operations against NumPy in float64, and their gradients against finite differences where cheap."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm import ops
from mindglm.ops import composed
from tests.golden import rel_error

rng = np.random.default_rng(0)


def draw(*shape):
    return rng.standard_normal(shape)


def tensor(array):
    return Tensor(array.astype(np.float32))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def check(function, reference, *inputs, tolerance=2e-6):
    """Value against `reference`, gradient of a weighted sum against central differences in float64."""
    tensors = [tensor(x) for x in inputs]
    expected = reference(*inputs)
    assert rel_error(function(*tensors), expected) < tolerance
    weights = draw(*expected.shape)

    def weighted(*args):
        return (function(*args) * tensor(weights)).sum()

    gradients = ms.grad(weighted, tuple(range(len(inputs))))(*tensors)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for position, gradient in enumerate(gradients):
        direction = draw(*inputs[position].shape)
        step = 1e-5
        moved = [list(inputs), list(inputs)]
        moved[0][position] = inputs[position] + step * direction
        moved[1][position] = inputs[position] - step * direction
        slope = ((reference(*moved[0]) - reference(*moved[1])) * weights).sum() / (2 * step)
        ours = (gradient.asnumpy().astype(np.float64) * direction).sum()
        assert abs(ours - slope) < 1e-4 * max(1.0, abs(slope)), f"gradient of input {position}"


def test_linear():
    check(ops.linear, lambda x, w, b: x @ w.T + b, draw(2, 3, 5), draw(4, 5), draw(4))
    check(ops.linear, lambda x, w, b: x @ w.T + b, draw(2, LARGE, 5), draw(64, 5), draw(64))


LARGE = 300
"""Rows that make a matrix of 64 columns larger than composed.SMALL: the other way of writing the same."""


def test_rms_norm():
    def reference(x, w):
        return w * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    check(lambda x, w: composed.rms_norm(x, w, 1e-5), reference, draw(2, 3, 8), draw(8))
    check(lambda x, w: composed.rms_norm(x, w, 1e-5), reference, draw(2, LARGE, 64), draw(64), tolerance=5e-6)


def reference_layer_norm(x, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def test_layer_norm_keeps_its_epsilon():
    small = draw(2, 3, 8) * 1e-3  # so small that eps decides
    check(lambda x: composed.layer_norm(x, None, None, 1e-5), lambda x: reference_layer_norm(x, 1e-5), draw(2, 3, 8))
    assert rel_error(composed.layer_norm(tensor(small), None, None, 1e-6), reference_layer_norm(small, 1e-6)) < 1e-5
    check(lambda x, w, b: composed.layer_norm(x, w, b, 1e-6), lambda x, w, b: reference_layer_norm(x, 1e-6) * w + b,
          draw(2, 3, 8), draw(8), draw(8))
    check(lambda x, w, b: composed.layer_norm(x, w, b, 1e-6), lambda x, w, b: reference_layer_norm(x, 1e-6) * w + b,
          draw(2, LARGE, 64), draw(64), draw(64), tolerance=5e-6)


def test_scale_shift_is_per_sample():
    check(composed.scale_shift, lambda x, a, b: x * a + b, draw(2, 3, 4), draw(2, 1, 4), draw(2, 1, 4))
    check(composed.scale_shift, lambda x, a, b: x * a + b, draw(2, 3, 4), draw(2, 1, 4), draw(2, 3, 4))


def test_group_norm():
    def reference(x, w, b):
        n, c, h, wd = x.shape
        return reference_layer_norm(x.reshape(n, 2, -1), 1e-6).reshape(x.shape) * w[:, None, None] + b[:, None, None]

    check(lambda x, w, b: ops.group_norm(x, 2, w, b, 1e-6), reference, draw(2, 4, 3, 3), draw(4), draw(4))


def test_activations():
    from math import erf

    check(ops.silu, lambda x: x / (1 + np.exp(-x)), draw(4, 5))
    check(composed.gelu, lambda x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))), draw(4, 5))
    check(composed.gelu_tanh, lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), draw(4, 5))


def test_swiglu_activates_the_first_half():
    check(composed.swiglu, lambda x: x[..., :3] / (1 + np.exp(-x[..., :3])) * x[..., 3:], draw(4, 6))


def test_unit_length_and_the_first_of_equal_minima():
    check(composed.unit, lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True)), draw(4, 5))
    assert not composed.unit(tensor(np.zeros((1, 5)))).asnumpy().any()
    assert composed.argmin(tensor(np.array([[3.0, 1.0, 1.0], [0.0, 2.0, 0.0]]))).asnumpy().tolist() == [1, 0]


def test_cast_leaves_a_tensor_of_the_dtype_alone():
    x = tensor(draw(2))
    assert ops.cast(x, ms.float32) is x
    assert ops.cast(x, ms.float16).dtype == ms.float16


@pytest.mark.parametrize("rotary", [8, 6])
def test_rotate_half_turns_pairs_and_passes_the_rest(rotary):
    angle = draw(1, 1, 3, rotary // 2)
    cos, sin = (np.concatenate([f(angle), f(angle)], -1) for f in (np.cos, np.sin))

    def reference(x):
        first, second = x[..., : rotary // 2], x[..., rotary // 2 : rotary]
        c, s = np.cos(angle), np.sin(angle)
        return np.concatenate([first * c - second * s, second * c + first * s, x[..., rotary:]], -1)

    check(lambda x: composed.rotate_half(x, tensor(cos), tensor(sin)), reference, draw(2, 4, 3, 8))


def reference_attention(q, k, v, allowed, scale):
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    scores = np.where(allowed, q @ k.swapaxes(2, 3) * scale, -1e30)
    return softmax(scores) @ v


def test_attention_groups_heads_consecutively():
    check(lambda q, k, v: composed.attention(q, k, v), lambda q, k, v: reference_attention(q, k, v, True, 8**-0.5),
          draw(2, 4, 3, 8), draw(2, 2, 5, 8), draw(2, 2, 5, 8))


def test_attention_masks():
    mask = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool).reshape(2, 1, 1, 5)
    past = np.tril(np.ones((3, 5), bool), 2)
    for causal, allowed in ((False, mask), (True, mask & past)):
        check(lambda q, k, v, c=causal: composed.attention(q, k, v, Tensor(mask), 1.0, c),
              lambda q, k, v, a=allowed: reference_attention(q, k, v, a, 1.0),
              draw(2, 4, 3, 8), draw(2, 2, 5, 8), draw(2, 2, 5, 8))


@pytest.mark.parametrize("kernel, stride, padding", [(1, 1, 0), (3, 1, 1), (3, 1, 0), (3, 2, 0), (4, 4, 0)])
def test_conv2d(kernel, stride, padding):
    def reference(x, w, b):
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        ho, wo = (x.shape[2] - kernel) // stride + 1, (x.shape[3] - kernel) // stride + 1
        out = np.zeros((x.shape[0], w.shape[0], ho, wo))
        for i in range(ho):
            for j in range(wo):
                window = x[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
                out[:, :, i, j] = np.einsum("nchw,ochw->no", window, w)
        return out + b[:, None, None]

    check(lambda x, w, b: composed.conv2d(x, w, b, stride, padding), reference,
          draw(2, 3, 9, 8), draw(4, 3, kernel, kernel), draw(4))


def test_token_nll_ignores_negative_labels():
    labels = np.array([2, -100, 0], np.int32)

    def reference(logits):
        picked = -np.log(softmax(logits))[np.arange(3), np.maximum(labels, 0)]
        return np.where(labels >= 0, picked, 0.0)

    check(lambda x: composed.token_nll(x, Tensor(labels)), reference, draw(3, 6))


def test_embedding_and_upsampling():
    ids = np.array([[0, 3], [3, 3]], np.int32)
    check(lambda t: composed.embedding(t, Tensor(ids)), lambda t: t[ids], draw(4, 5))
    check(ops.upsample_nearest2, lambda x: x.repeat(2, 2).repeat(2, 3), draw(2, 3, 2, 3))
    check(ops.pad_right_bottom, lambda x: np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1))), draw(2, 3, 2, 3))


def test_vectors_of_gradients():
    x, y = draw(5), draw(3)
    joined = composed.end_to_end([tensor(x), tensor(y)])
    np.testing.assert_array_equal(joined.asnumpy(), np.concatenate([x, y]).astype(np.float32))
    assert abs(float(composed.sum_of_squares(joined).asnumpy()) / ((x**2).sum() + (y**2).sum()) - 1) < 1e-6
