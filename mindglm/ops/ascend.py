"""The same operations on Ascend: MindSpore's fused kernels.

Not run where this project is developed: `tests/ops/test_ascend.py` compiles each function and its gradient in bfloat16
with MindSpore's front end and looks every primitive up in the wheel's table of Ascend kernels. That proves types,
shapes and the existence of kernels, not numbers, memory or speed. Shape letters as in `composed.py`.
"""

import numpy as np
from mindspore import Tensor, mint, ops

# flash_attention_score's sparse_mode 2 reads causality from one compressed lower-triangle mask of this side.
CAUSAL_MASK_SIDE = 2048


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


def silu(x):
    """x * sigmoid(x)."""
    return mint.nn.functional.silu(x)


def gelu(x):
    """GELU in the exact (erf) form."""
    return mint.nn.functional.gelu(x)


def gelu_tanh(x):
    """GELU in the tanh form."""
    return mint.nn.functional.gelu(x, approximate="tanh")


def embedding(table_VC, ids):
    """Rows of a table: ids (...) int32 -> (..., C)."""
    return mint.nn.functional.embedding(ids, table_VC)


def rotate_half(x_BHSD, cos, sin):
    """Rotary position embedding, half-split pairs, on the leading cos.shape[-1] dims of D; the rest passes."""
    rotary = cos.shape[-1]
    x = x_BHSD if rotary == x_BHSD.shape[-1] else mint.narrow(x_BHSD, 3, 0, rotary)
    turned = ops.rotary_position_embedding(x.to(cos.dtype), cos, sin, 0).to(x_BHSD.dtype)
    if rotary == x_BHSD.shape[-1]:
        return turned
    return mint.cat((turned, mint.narrow(x_BHSD, 3, rotary, x_BHSD.shape[-1] - rotary)), -1)


def attention(q_BHSD, k_BGTD, v_BGTD, mask=None, scale=None, causal: bool = False):
    """softmax(q k^T * scale + mask) v by FlashAttentionScore; arguments as in `composed.attention`."""
    heads, s, d = q_BHSD.shape[1:]
    t = k_BGTD.shape[2]
    scale = d**-0.5 if scale is None else scale
    blocked, sparse_mode = None, 0
    if causal and s > 1 and mask is None and s == t:
        blocked, sparse_mode = Tensor(np.triu(np.ones((CAUSAL_MASK_SIDE,) * 2, np.uint8), 1)), 2
    elif causal and s > 1:
        future = Tensor(np.triu(np.ones((s, t), bool), 1 + t - s).reshape(1, 1, s, t))
        blocked = future if mask is None else mint.logical_or(mint.logical_not(mask), future)
    elif mask is not None:
        blocked = mint.logical_not(mask)
    if sparse_mode == 0 and blocked is not None:
        blocked = mint.broadcast_to(blocked, (q_BHSD.shape[0], 1, s, t))
    return ops.flash_attention_score(q_BHSD, k_BGTD, v_BGTD, heads, attn_mask=blocked, scalar_value=scale,
                                     input_layout="BNSD", sparse_mode=sparse_mode)


def conv2d(x_NCHW, w_OIHW, b_O, stride: int = 1, padding: int = 0):
    """2-D convolution."""
    return mint.nn.functional.conv2d(x_NCHW, w_OIHW, b_O, stride, padding)


def token_nll(logits_NV, labels_N):
    """Negative log likelihood per row in float32; rows whose label is negative give 0."""
    valid = labels_N >= 0
    log_probs = mint.nn.functional.log_softmax(logits_NV.float(), -1)
    safe = mint.where(valid, labels_N, mint.zeros_like(labels_N))
    nll = -mint.gather(log_probs, 1, safe.reshape(-1, 1)).reshape(-1)
    return mint.where(valid, nll, mint.zeros_like(nll))
