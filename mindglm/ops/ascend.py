"""The same operations on Ascend: MindSpore's fused kernels.

Not run where this project is developed: `tests/ops/test_ascend.py` and `tests/ops/test_ascend_models.py` compile each
function, whole models and their gradients in bfloat16 with MindSpore's front end and look every primitive up in the
wheel's table of Ascend kernels. That proves types, shapes and the existence of kernels, not numbers, memory or speed.
The front end does not know what shapes a kernel accepts at run time; where the kernel's documentation names a limit,
the function keeps to it here. Shape letters as in `composed.py`.
"""

import functools

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops
from mindspore.ops import constexpr

from mindglm.ops.shared import softmax_attention

CAUSAL_MASK_SIDE = 2048
"""flash_attention_score's sparse_mode 2 reads causality from one compressed lower-triangle mask of this side."""


def linear(x, w, b=None):
    """x (..., in) times w (out, in) transposed, plus b (out,)."""
    return mint.nn.functional.linear(x, w, b)


def rms_norm(x, w, eps: float):
    """w * x / rms(x) over the last axis; statistics in float32 inside the kernel."""
    return ops.rms_norm(x, w, eps)[0]


def layer_norm(x, w, b, eps: float):
    """LayerNorm over the last axis; w and b may both be None (no affine)."""
    return mint.nn.functional.layer_norm(x, (x.shape[-1],), w, b, eps)


def group_norm(x_NCHW, groups: int, w_C, b_C, eps: float):
    """GroupNorm with affine."""
    return mint.nn.functional.group_norm(x_NCHW, groups, w_C, b_C, eps)


def scale_shift(x_BSD, scale_B1D, shift):
    """x * scale + shift; shift is (B, 1, D) or of x's shape."""
    return mint.addcmul(shift, x_BSD, scale_B1D)


def gelu(x):
    """GELU in the exact (erf) form."""
    return mint.nn.functional.gelu(x)


def gelu_tanh(x):
    """GELU in the tanh form."""
    return mint.nn.functional.gelu(x, approximate="tanh")


def swiglu(gate_up):
    """silu(gate) * up of [gate, up] joined along the last axis."""
    return ops.swiglu(gate_up, -1)


def unit(x):
    """x over its length along the last axis (at least 1e-12). The gradient of a plain sqrt has no aclnn kernel."""
    return x / mint.clamp(mint.norm(x, 2, -1, True), 1e-12, None)


def argmin(x):
    """Index of the smallest value along the last axis, the first on ties; int32."""
    return mint.argmin(x, -1).to(ms.int32)


def embedding(table_VC, ids):
    """Rows of a table: ids (...) int32 -> (..., C)."""
    return mint.nn.functional.embedding(ids, table_VC)


def rotate_half(x_BHSD, cos, sin):
    """Rotary position embedding, half-split pairs, on the leading cos.shape[-1] dims of D; the rest passes."""
    b, h, s, width = x_BHSD.shape
    rotary = cos.shape[-1]
    x = x_BHSD if rotary == width else mint.narrow(x_BHSD, 3, 0, rotary)
    x = x.to(cos.dtype)
    if b * h <= 8 * s:
        turned = ops.rotary_position_embedding(x, cos, sin, 0)
    else:  # documented as not to be called for so few positions, as when one code at a time is decoded
        first, second = mint.split(x, rotary // 2, -1)
        turned = x * cos + mint.cat((-second, first), -1) * sin
    turned = turned.to(x_BHSD.dtype)
    if rotary == width:
        return turned
    return mint.cat((turned, mint.narrow(x_BHSD, 3, rotary, width - rotary)), -1)


def attention(q_BHSD, k_BGTD, v_BGTD, mask=None, scale=None, causal: bool = False):
    """softmax(q k^T * scale + mask) v; arguments as in `composed.attention`.

    FlashAttentionScore in half precision with heads of a multiple of 16, which is all it takes; composed otherwise.
    """
    b, heads, s, d = q_BHSD.shape
    t = k_BGTD.shape[2]
    scale = d**-0.5 if scale is None else scale
    causal = causal and s > 1
    if q_BHSD.dtype == ms.float32 or d % 16:
        if causal:
            past = mint.logical_not(_future(s, t))
            mask = past if mask is None else mint.logical_and(mask, past)
        return softmax_attention(q_BHSD, k_BGTD, v_BGTD, mask, scale)
    blocked, sparse_mode = None, 0
    if causal and mask is None and s == t:
        blocked, sparse_mode = _compressed_causal_mask(), 2
    elif causal:
        blocked = _future(s, t) if mask is None else mint.logical_or(mint.logical_not(mask), _future(s, t))
    elif mask is not None:
        blocked = mint.logical_not(mask)
    if sparse_mode == 0 and blocked is not None:
        blocked = mint.broadcast_to(blocked, (b, 1, s, t))
    return ops.flash_attention_score(q_BHSD, k_BGTD, v_BGTD, heads, attn_mask=blocked, scalar_value=scale,
                                     input_layout="BNSD", sparse_mode=sparse_mode)


# Masks are made once for a shape and kept: else every layer of every step would upload its own.


@constexpr
@functools.lru_cache(maxsize=1)
def _compressed_causal_mask() -> Tensor:
    return Tensor(np.triu(np.ones((CAUSAL_MASK_SIDE,) * 2, np.uint8), 1))


@constexpr
@functools.lru_cache(maxsize=16)
def _future(s: int, t: int) -> Tensor:
    """bool (1, 1, S, T): True where key j lies after query i, the last query standing at the last key."""
    return Tensor(np.triu(np.ones((s, t), bool), 1 + t - s).reshape(1, 1, s, t))


def conv2d(x_NCHW, w_OIHW, b_O, stride: int = 1, padding: int = 0):
    """2-D convolution."""
    return mint.nn.functional.conv2d(x_NCHW, w_OIHW, b_O, stride, padding)


def end_to_end(vectors):
    """float32 vectors joined."""
    return mint.cat(vectors)


def sum_of_squares(vector):
    """Of a float32 vector, a scalar."""
    return mint.sum(vector * vector)


def token_nll(logits_NV, labels_N):
    """Negative log likelihood per row in float32; rows whose label is negative give 0."""
    valid = labels_N >= 0
    log_probs = mint.nn.functional.log_softmax(logits_NV.float(), -1)
    safe = mint.where(valid, labels_N, mint.zeros_like(labels_N))
    nll = -mint.gather(log_probs, 1, safe.reshape(-1, 1)).reshape(-1)
    return mint.where(valid, nll, mint.zeros_like(nll))
