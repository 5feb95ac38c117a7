"""Operations composed from parts that have CPU kernels; values and gradients equal the fused ones.

Why each is written as it is, with timings: MindSpore's own layer_norm, gelu, conv2d, cross_entropy and embedding of
`mint` have no CPU kernel, and `ops.conv2d` and `ops.gelu` have slow ones. Shape letters: N batch, C channels, H W
sides, B batch, S query length, T key length, H heads, G key/value heads, D head dim, V classes.
"""

import numpy as np
from mindspore import Tensor, mint, ops

SQRT_HALF = 0.7071067811865476
LOWEST = float(np.finfo(np.float32).min)
LARGEST_SHIFT_SIDE = 256  # above it a product with a shift matrix costs more than cutting windows
TANH_SCALE = 0.7978845608028654  # sqrt(2 / pi)


def linear(x, w, b=None):
    """x (..., in) times w (out, in) transposed, plus b (out,)."""
    return mint.nn.functional.linear(x, w, b)


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


def group_norm(x_NCHW, groups: int, w_C, b_C, eps: float):
    """GroupNorm with affine."""
    return mint.nn.functional.group_norm(x_NCHW, groups, w_C, b_C, eps)


def silu(x):
    """x * sigmoid(x)."""
    return mint.nn.functional.silu(x)


def gelu(x):
    """GELU in the exact (erf) form."""
    return 0.5 * x * (1.0 + mint.erf(x * SQRT_HALF))


def gelu_tanh(x):
    """GELU in the tanh form, written with the sigmoid: 0.5 (1 + tanh(u)) = sigmoid(2 u), one kernel less."""
    return x * mint.sigmoid(x * (2 * TANH_SCALE + 2 * TANH_SCALE * 0.044715 * x * x))


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
    b, h, s, d = q_BHSD.shape
    g, t = k_BGTD.shape[1], k_BGTD.shape[2]
    scale = d**-0.5 if scale is None else scale
    # Query heads that share a key head are stacked along the sequence: no copy of k and v.
    q = (q_BHSD * scale).reshape(b, g, h // g * s, d)
    scores = mint.matmul(q, k_BGTD.swapaxes(2, 3))
    if causal and s > 1:  # built by operations: a NumPy array made inside a compiled graph ends the process
        past = ops.arange(t).reshape(1, 1, 1, t) <= ops.arange(t - s, t).reshape(1, 1, s, 1)
        mask = past if mask is None else mint.logical_and(mask, past)
    if mask is not None:
        bias = mint.where(mask, 0.0, LOWEST)
        scores = (scores.reshape(b, h, s, t) + bias).reshape(b, g, h // g * s, t)
    weights = mint.nn.functional.softmax(scores, -1)
    return mint.matmul(weights, v_BGTD).reshape(b, h, s, d)


def conv2d(x_NCHW, w_OIHW, b_O, stride: int = 1, padding: int = 0):
    """2-D convolution: shifted windows joined on channels, then one matmul (4-10 times the CPU kernel's speed)."""
    out, _, kh, kw = w_OIHW.shape
    n, c, h, w = x_NCHW.shape
    if (kh, kw, stride, padding) == (3, 3, 1, 1) and max(h, w) <= LARGEST_SHIFT_SIDE:
        return _conv3x3(x_NCHW, w_OIHW, b_O)
    ho, wo = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    # A window is cut at full resolution and then thinned, so it may reach past the image by up to stride - 1.
    below = max(0, kh - 1 + ho * stride - h - padding)
    right = max(0, kw - 1 + wo * stride - w - padding)
    if padding or below or right:
        x_NCHW = ops.pad(x_NCHW, (padding, right, padding, below))
    columns = []
    for i in range(kh):
        for j in range(kw):
            window = x_NCHW[:, :, i : i + ho * stride, j : j + wo * stride]
            if stride > 1:  # a slice with a step has no working gradient on CPU
                window = window.reshape(n, c, ho, stride, wo, stride)[:, :, :, 0:1, :, 0:1].reshape(n, c, ho, wo)
            columns.append(window)
    columns = columns[0] if len(columns) == 1 else mint.cat(columns, 1)
    kernel = w_OIHW.permute(0, 2, 3, 1).reshape(out, kh * kw * c)
    y = mint.matmul(kernel, columns.reshape(n, kh * kw * c, ho * wo))
    return (y + b_O.reshape(1, out, 1)).reshape(n, out, ho, wo)


def _conv3x3(x_NCHW, w_OIHW, b_O):
    """3x3, stride 1, padding 1, as matrix products only: 2-3 times the speed of cut windows.

    Slicing and joining cost more on CPU than multiplying, so shifts along both sides are products with matrices of 0
    and 1: columns are shifted before the kernel's columns are applied, rows (the three rows of the kernel stand
    stacked, `3 * H`) are shifted and summed after.
    """
    n, c, h, w = x_NCHW.shape
    out = w_OIHW.shape[0]
    dtype = x_NCHW.dtype
    left, middle, right = mint.split(w_OIHW.permute(3, 0, 2, 1).reshape(3, 3 * out, c), 1, 0)
    lines = x_NCHW.reshape(n * c * h, w)
    stacked = (mint.bmm(mint.tile(left, (n, 1, 1)), _shifted(lines, w, 1, dtype).reshape(n, c, h * w))
               + mint.bmm(mint.tile(middle, (n, 1, 1)), x_NCHW.reshape(n, c, h * w))
               + mint.bmm(mint.tile(right, (n, 1, 1)), _shifted(lines, w, -1, dtype).reshape(n, c, h * w)))
    rows = np.concatenate([np.eye(h, k=-1), np.eye(h), np.eye(h, k=1)], 1).astype(np.float32)
    rows = mint.tile(Tensor(rows.reshape(1, h, 3 * h), dtype), (n * out, 1, 1))
    y = mint.bmm(rows, stacked.reshape(n * out, 3 * h, w)).reshape(n, out, h * w)
    bias = mint.bmm(mint.tile(b_O.reshape(1, out, 1), (n, 1, 1)), mint.ones((n, 1, h * w), dtype=dtype))
    return (y + bias).reshape(n, out, h, w)


def _shifted(lines_MW, width: int, by: int, dtype):
    """Every line moved `by` places, zeros moving in."""
    return mint.matmul(lines_MW, Tensor(np.eye(width, k=by, dtype=np.float32), dtype))


def token_nll(logits_NV, labels_N):
    """Negative log likelihood per row in float32; rows whose label is negative give 0.

    logits (N, V), labels (N,) int32 -> (N,) float32.
    """
    valid = labels_N >= 0
    log_probs = ops.log_softmax(logits_NV.float(), -1)
    safe = mint.where(valid, labels_N, ops.zeros_like(labels_N))
    nll = -mint.gather(log_probs, 1, safe.reshape(-1, 1)).reshape(-1)
    return mint.where(valid, nll, ops.zeros_like(nll))
