"""The Ascend branch of every operation compiles in bfloat16, forward and gradient, into Ascend kernels."""

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindglm.ops import ascend, shared
from tests.ops.kernel_table import Gradient, ascend_kernels, primitives, without_kernel


class Call(nn.Cell):
    """One operation as a Cell, its settings fixed."""

    def __init__(self, function, **settings):
        super().__init__()
        self.function = functools.partial(function, **settings) if settings else function

    def construct(self, *inputs):
        return self.function(*inputs)


def bf16(*shape):
    return Tensor(np.ones(shape, np.float32)).astype(ms.bfloat16)


X, W, B = bf16(2, 6, 64), bf16(64, 64), bf16(64)
Q, KV = bf16(2, 4, 16, 64), bf16(2, 2, 16, 64)
MASK = Tensor(np.ones((2, 1, 1, 16), bool))
TABLE = Tensor(np.ones((1, 1, 16, 32), np.float32))


def linear(x, w, b):
    return ascend.linear(x, w, b)


def rms_norm(x, w):
    return ascend.rms_norm(x, w, 1e-5)


def layer_norm(x, w, b):
    return ascend.layer_norm(x, w, b, 1e-6)


def layer_norm_plain(x):
    return ascend.layer_norm(x, None, None, 1e-5)


def group_norm(x, w, b):
    return ascend.group_norm(x, 8, w, b, 1e-6)


def rotate(x, cos, sin):
    return ascend.rotate_half(x, cos, sin)


def attention(q, k, v):
    return ascend.attention(q, k, v)


def attention_masked(q, k, v, mask):
    return ascend.attention(q, k, v, mask)


def attention_causal(q, k, v):
    return ascend.attention(q, k, v, None, None, True)


def attention_causal_masked(q, k, v, mask):
    return ascend.attention(q, k, v, mask, None, True)


def conv2d(x, w, b):
    return ascend.conv2d(x, w, b, 2, 1)


def scale_shift(x, scale, shift):
    return ascend.scale_shift(x, scale, shift)


def attention_float32(q, k, v, mask):
    return ascend.attention(q.float(), k.float(), v.float(), mask, None, True)


IMAGE = bf16(2, 16, 8, 8)
CASES = {
    "linear": (linear, (X, W, B), X),
    "rms_norm": (rms_norm, (X, B), X),
    "layer_norm": (layer_norm, (X, B, B), X),
    "layer_norm_plain": (layer_norm_plain, (X,), X),
    "group_norm": (group_norm, (IMAGE, bf16(16), bf16(16)), IMAGE),
    "silu": (shared.silu, (X,), X),
    "gelu": (ascend.gelu, (X,), X),
    "gelu_tanh": (ascend.gelu_tanh, (X,), X),
    "embedding": (ascend.embedding, (W, Tensor(np.zeros((2, 6), np.int32))), X),
    "scale_shift": (scale_shift, (X, bf16(2, 1, 64), bf16(2, 1, 64)), X),
    "swiglu": (ascend.swiglu, (X,), bf16(2, 6, 32)),
    "unit": (ascend.unit, (X,), X),
    "rotate_half": (rotate, (Q, TABLE, TABLE), Q),
    "rotate_half_of_one_position": (rotate, (bf16(2, 32, 1, 64), TABLE[:, :, :1], TABLE[:, :, :1]), bf16(2, 32, 1, 64)),
    "attention": (attention, (Q, KV, KV), Q),
    "attention_masked": (attention_masked, (Q, KV, KV, MASK), Q),
    "attention_causal": (attention_causal, (Q, KV, KV), Q),
    "attention_causal_masked": (attention_causal_masked, (Q, KV, KV, MASK), Q),
    "attention_float32": (attention_float32, (Q, KV, KV, MASK), Tensor(np.ones(Q.shape, np.float32))),
    "conv2d": (conv2d, (IMAGE, bf16(16, 16, 3, 3), bf16(16)), bf16(2, 16, 4, 4)),
    "token_nll": (ascend.token_nll, (bf16(12, 64), Tensor(np.zeros(12, np.int32))), Tensor(np.ones(12, np.float32))),
}


@pytest.mark.parametrize("name", CASES)
def test_operation_compiles_into_ascend_kernels(name):
    function, inputs, output_gradient = CASES[name]
    launched = primitives(Call(function), *inputs) | primitives(Gradient(Call(function)), *inputs, output_gradient)
    missing = without_kernel(launched)
    assert launched and not missing, f"{name}: no Ascend kernel for {sorted(missing)}"


def end_to_end(*vectors):
    return ascend.end_to_end(vectors)


@pytest.mark.parametrize("function, inputs", [(ascend.argmin, (X,)), (end_to_end, (B.float(), B.float())),
                                              (ascend.sum_of_squares, (B.float(),))])
def test_operations_without_gradient_compile_into_ascend_kernels(function, inputs):
    launched = primitives(Call(function), *inputs)
    assert launched and not without_kernel(launched)


@pytest.mark.parametrize("name, fused", [("attention", "FlashAttentionScore"),
                                         ("attention_causal", "FlashAttentionScore"),
                                         ("rotate_half", "RotaryPositionEmbedding")])
def test_the_fused_kernel_is_taken_where_its_documentation_allows_it(name, fused):
    function, inputs, _ = CASES[name]
    assert fused in primitives(Call(function), *inputs)


@pytest.mark.parametrize("name, fused", [("attention_float32", "FlashAttentionScore"),
                                         ("rotate_half_of_one_position", "RotaryPositionEmbedding")])
def test_the_fused_kernel_is_left_where_its_documentation_forbids_it(name, fused):
    function, inputs, _ = CASES[name]
    assert fused not in primitives(Call(function), *inputs)


def test_the_optimizer_has_its_kernel():
    assert "AdamW" in ascend_kernels()  # mint.optim.AdamW, what mindglm.train.optimizer uses on Ascend


def test_the_check_sees_a_missing_kernel():
    launched = primitives(Call(ms.ops.bincount), Tensor(np.zeros(4, np.int32)))
    assert without_kernel(launched)
