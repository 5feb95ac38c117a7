"""Operations composed from parts that have CPU kernels; values and gradients equal the fused ones.

Why each is written as it is, with timings: MindSpore's own layer_norm, gelu, conv2d, cross_entropy and embedding of
`mint` have no CPU kernel, and `ops.conv2d` and `ops.gelu` have slow ones. Shape letters: N batch, C channels, H W
sides, B batch, S query length, T key length, H heads, G key/value heads, D head dim, V classes.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from mindglm.ops.shared import silu, softmax_attention

SQRT_HALF = 0.7071067811865476
TANH_SCALE = 0.7978845608028654  # sqrt(2 / pi)


def rms_norm(x, w, eps: float):
    """w * x / rms(x) over the last axis; statistics in float32, product with w in x's dtype."""
    x32 = x.float()
    normed = x32 * mint.rsqrt(mint.mean(x32 * x32, -1, True) + eps)
    return w * normed.to(x.dtype)


def layer_norm(x, w, b, eps: float):
    """LayerNorm over the last axis; w and b may both be None (no affine)."""
    width = x.shape[-1]
    if w is None:
        w, b = mint.ones((width,), dtype=x.dtype), mint.zeros((width,), dtype=x.dtype)
    return ops.LayerNorm(-1, -1, eps)(x, w, b)[0]


def gelu(x):
    """GELU in the exact (erf) form."""
    return 0.5 * x * (1.0 + mint.erf(x * SQRT_HALF))


def gelu_tanh(x):
    """GELU in the tanh form, written with the sigmoid: 0.5 (1 + tanh(u)) = sigmoid(2 u), one kernel less."""
    return x * mint.sigmoid(x * (2 * TANH_SCALE + 2 * TANH_SCALE * 0.044715 * x * x))


def swiglu(gate_up):
    """silu(gate) * up of [gate, up] joined along the last axis."""
    gate, up = mint.split(gate_up, gate_up.shape[-1] // 2, -1)
    return silu(gate) * up


def unit(x):
    """x over its length along the last axis (at least 1e-12)."""
    return x / mint.clamp(mint.sqrt((x * x).sum(-1, keepdims=True)), 1e-12, None)


def argmin(x):
    """Index of the smallest value along the last axis, the first on ties; int32."""
    return x.argmin(-1).astype(ms.int32)


def embedding(table_VC, ids):
    """Rows of a table: ids (...) int32 -> (..., C)."""
    return ops.gather(table_VC, ids, 0)


def rotate_half(x_BHSD, cos, sin):
    """Rotary position embedding, half-split pairs, on the leading cos.shape[-1] dims of D; the rest passes.

    cos and sin broadcast against (B, H, S, R). The rotation runs in the tables' dtype and is cast back to x's.
    The swap of halves is a product with a matrix of 0, 1 and -1: exact, and seven times as fast as slicing and joining.
    """
    width, rotary = x_BHSD.shape[-1], cos.shape[-1]
    if rotary < width:  # tables are small: extending them by "no rotation" is cheaper than cutting x
        rest = cos.shape[:-1] + (width - rotary,)
        cos = mint.cat((cos, mint.ones(rest, dtype=cos.dtype)), -1)
        sin = mint.cat((sin, mint.zeros(rest, dtype=sin.dtype)), -1)
    x = x_BHSD.to(cos.dtype)
    swapped = mint.matmul(x.reshape(-1, width), Tensor(_half_swap(width, rotary), cos.dtype)).reshape(x.shape)
    return (x * cos + swapped * sin).to(x_BHSD.dtype)


def _half_swap(width: int, rotary: int) -> np.ndarray:
    """Matrix M with x M = [-x2, x1, 0] for x = [x1, x2, rest]."""
    half = rotary // 2
    matrix = np.zeros((width, width), np.float32)
    matrix[np.arange(half, rotary), np.arange(half)] = -1
    matrix[np.arange(half), np.arange(half, rotary)] = 1
    return matrix


def attention(q_BHSD, k_BGTD, v_BGTD, mask=None, scale=None, causal: bool = False):
    """softmax(q k^T * scale + mask) v with G key/value heads, each serving H / G consecutive query heads.

    Args:
        mask: bool, broadcastable to (B, 1, S, T); True where a query may attend.
        scale: default D ** -0.5.
        causal: query i of S sees keys up to i + T - S.
    """
    s, d = q_BHSD.shape[2:]
    t = k_BGTD.shape[2]
    if causal and s > 1:  # built by operations: a NumPy array made inside a compiled graph ends the process
        past = ops.arange(t).reshape(1, 1, 1, t) <= ops.arange(t - s, t).reshape(1, 1, s, 1)
        mask = past if mask is None else mint.logical_and(mask, past)
    return softmax_attention(q_BHSD, k_BGTD, v_BGTD, mask, d**-0.5 if scale is None else scale)


def conv2d(x_NCHW, w_OIHW, b_O, stride: int = 1, padding: int = 0):
    """2-D convolution: unfolded windows and one batched matmul (4-20 times the speed of the CPU's own kernel).

    Also the bias is a product, of b and a row of ones: adding a broadcast tensor is slower.
    """
    out, c, kh, kw = w_OIHW.shape
    n, _, h, w = x_NCHW.shape
    ho, wo = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    if (kh, kw, stride, padding) == (1, 1, 1, 0):
        windows = x_NCHW.reshape(n, c, h * w)
    else:
        windows = ops.unfold(x_NCHW, (kh, kw), 1, padding, stride)
    y = mint.bmm(mint.tile(w_OIHW.reshape(1, out, c * kh * kw), (n, 1, 1)), windows)
    ones = mint.ones((n, 1, ho * wo), dtype=x_NCHW.dtype)
    return (y + mint.bmm(mint.tile(b_O.reshape(1, out, 1), (n, 1, 1)), ones)).reshape(n, out, ho, wo)


def token_nll(logits_NV, labels_N):
    """Negative log likelihood per row in float32; rows whose label is negative give 0.

    logits (N, V), labels (N,) int32 -> (N,) float32.
    """
    valid = labels_N >= 0
    log_probs = ops.log_softmax(logits_NV.float(), -1)
    safe = mint.where(valid, labels_N, ops.zeros_like(labels_N))
    nll = -mint.gather(log_probs, 1, safe.reshape(-1, 1)).reshape(-1)
    return mint.where(valid, nll, ops.zeros_like(nll))
