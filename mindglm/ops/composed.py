"""Operations composed from parts that have CPU kernels; values and gradients equal the fused ones.

Why each is written as it is: MindSpore's own layer_norm, gelu, conv2d, cross_entropy and embedding of `mint` have no
CPU kernel, and many kernels have a slow path that the obvious form would take. Measured on one core, ns an element:
a sum or product with a broadcast operand 5-6, with one of the same shape 0.3; `tile` 0.3; a reduction of the last axis
of a matrix 0.3, of an array of more axes 4; LayerNorm 8, GroupNorm 17, a copy of permuted axes 9. Hence everything
here is laid out as a matrix, small operands are repeated before they meet large ones, and products of matrices
transpose by a flag. Shape letters: N batch or rows, C channels, H W sides, B batch, S query length, T key length,
H heads, G key/value heads, D width or head dim, V classes.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from mindglm.ops.shared import cast, silu, softmax_attention

SQRT_HALF = 0.7071067811865476
TANH_SCALE = 0.7978845608028654  # sqrt(2 / pi)

_times, _times_transposed = ops.MatMul(), ops.MatMul(transpose_b=True)
_times_each = ops.BatchMatMul()


SMALL = 1 << 14
"""Elements below which a slow kernel costs less than the launch of one more."""


def rows_of(x):
    """(..., D) -> (N, D)."""
    return x.reshape(-1, x.shape[-1])


def repeated_row(w, count: int):
    """(D,) -> (count, D), or what broadcasts to it."""
    return w if count * w.shape[0] < SMALL else mint.tile(w.reshape(1, -1), (count, 1))


def repeated_column(c_N1, width: int):
    """(N, 1) -> (N, width), or what broadcasts to it.

    An outer product: its gradient is another product, where that of a tile is a slow reduction.
    """
    return c_N1 if c_N1.shape[0] * width < SMALL else _times(c_N1, mint.ones((1, width), dtype=c_N1.dtype))


def repeated_tokens(x_B1D, tokens: int):
    """(B, 1, D) -> (B, tokens, D), an outer product for the same reason."""
    return _times_each(mint.ones((x_B1D.shape[0], tokens, 1), dtype=x_B1D.dtype), x_B1D)


def row_means(rows):
    """(N, D) -> (N, 1), a product likewise."""
    n, width = rows.shape
    if n * width < SMALL:
        return mint.mean(rows, -1, True)
    return _times(rows, ops.full((width, 1), 1.0 / width, dtype=rows.dtype))


def linear(x, w, b=None):
    """x (..., in) times w (out, in) transposed, plus b (out,)."""
    rows = rows_of(x)
    y = _times_transposed(rows, w)
    if b is not None:
        y = y + repeated_row(b, rows.shape[0])
    return y.reshape(x.shape[:-1] + (w.shape[0],))


def rms_norm(x, w, eps: float):
    """w * x / rms(x) over the last axis; statistics in float32, product with w in x's dtype."""
    rows = cast(rows_of(x), ms.float32)
    inverse = mint.rsqrt(row_means(rows * rows) + eps)
    normed = cast(rows * repeated_column(inverse, rows.shape[1]), x.dtype)
    return (repeated_row(w, rows.shape[0]) * normed).reshape(x.shape)


def layer_norm(x, w, b, eps: float):
    """LayerNorm over the last axis; w and b may both be None (no affine)."""
    rows = standard_rows(rows_of(x), eps)
    if w is not None:
        rows = rows * repeated_row(w, rows.shape[0]) + repeated_row(b, rows.shape[0])
    return rows.reshape(x.shape)


def standard_rows(rows, eps: float):
    """Rows (N, D) of mean 0 and variance 1."""
    width = rows.shape[1]
    centred = rows - repeated_column(row_means(rows), width)
    return centred * repeated_column(mint.rsqrt(row_means(centred * centred) + eps), width)


def group_norm(x_NCHW, groups: int, w_C, b_C, eps: float):
    """GroupNorm with affine."""
    n, c, h, w = x_NCHW.shape
    rows = standard_rows(x_NCHW.reshape(n * groups, -1), eps).reshape(n * c, h * w)
    scale, shift = (mint.tile(v.reshape(c, 1), (n, h * w)) for v in (w_C, b_C))
    return (rows * scale + shift).reshape(n, c, h, w)


def scale_shift(x_BSD, scale_B1D, shift):
    """x * scale + shift; shift is (B, 1, D) or of x's shape."""
    tokens = x_BSD.shape[1]
    if shift.shape[1] != tokens:
        shift = repeated_tokens(shift, tokens)
    return x_BSD * repeated_tokens(scale_B1D, tokens) + shift


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

    cos and sin are (1 or B, 1, S, R). The rotation runs in the tables' dtype and is cast back to x's.
    The swap of halves is a product with a matrix of 0, 1 and -1: exact, and seven times as fast as slicing and joining.
    """
    b, h, s, width = x_BHSD.shape
    rotary = cos.shape[-1]
    if rotary < width:  # tables are small: extending them by "no rotation" is cheaper than cutting x
        rest = cos.shape[:-1] + (width - rotary,)
        cos = mint.cat((cos, mint.ones(rest, dtype=cos.dtype)), -1)
        sin = mint.cat((sin, mint.zeros(rest, dtype=sin.dtype)), -1)
    x = cast(x_BHSD, cos.dtype)
    swapped = mint.matmul(rows_of(x), Tensor(_half_swap(width, rotary), cos.dtype)).reshape(x.shape)
    if b * h * s * width >= SMALL:
        cos, sin = (mint.tile(table, (b // table.shape[0], h, 1, 1)) for table in (cos, sin))
    return cast(x * cos + swapped * sin, x_BHSD.dtype)


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
    """2-D convolution: unfolded windows and one batched matmul (4-20 times the speed of the CPU's own kernel)."""
    out, c, kh, kw = w_OIHW.shape
    n, _, h, w = x_NCHW.shape
    ho, wo = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    if (kh, kw, stride, padding) == (1, 1, 1, 0):
        windows = x_NCHW.reshape(n, c, h * w)
    else:
        windows = ops.unfold(x_NCHW, (kh, kw), 1, padding, stride)
    y = mint.bmm(mint.tile(w_OIHW.reshape(1, out, c * kh * kw), (n, 1, 1)), windows)
    return (y + mint.tile(b_O.reshape(1, out, 1), (n, 1, ho * wo))).reshape(n, out, ho, wo)


def end_to_end(vectors):
    """float32 vectors joined. Outside of Cells only, without gradient.

    Joined on the host: in PyNative mode on CPU MindSpore never gives back the memory of an operation's scalar
    arguments (648 bytes each: tests/ops/test_leak.py), and this one runs in every step, compiled or not.
    """
    return Tensor.from_numpy(np.concatenate([vector.asnumpy() for vector in vectors]))


def sum_of_squares(vector):
    """Of a float32 vector, a scalar. Outside of Cells only, without gradient; on the host as `end_to_end`."""
    values = vector.asnumpy()
    return Tensor(np.dot(values, values))


def token_nll(logits_NV, labels_N):
    """Negative log likelihood per row in float32; rows whose label is negative give 0.

    logits (N, V), labels (N,) int32 -> (N,) float32.
    """
    valid = labels_N >= 0
    log_probs = ops.log_softmax(logits_NV.float(), -1)
    safe = mint.where(valid, labels_N, ops.zeros_like(labels_N))
    nll = -mint.gather(log_probs, 1, safe.reshape(-1, 1)).reshape(-1)
    return mint.where(valid, nll, ops.zeros_like(nll))
