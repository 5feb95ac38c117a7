"""Operations whose one form runs on every device. Shape letters as in `composed.py`."""

import mindspore as ms
import numpy as np
from mindspore import mint, ops

LOWEST = float(np.finfo(np.float32).min)
# Products that transpose by a flag: the gradient of `mint.matmul(q, k.swapaxes(2, 3))` copies whole score matrices.
_times, _times_transposed = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)


def cast(x, dtype):
    """x in another dtype; x itself when it has it already: on CPU even an idle cast costs as much as a product."""
    return x if x.dtype == dtype else x.to(dtype)


def silu(x):
    """x * sigmoid(x)."""
    return mint.nn.functional.silu(x)


def where(condition, x, y):
    """x where `condition` holds, else y."""
    return mint.where(condition, x, y)


def softmax_attention(q_BHSD, k_BGTD, v_BGTD, allowed, scale: float):
    """softmax(q k^T * scale + mask) v, softmax in float32, with G key heads that serve H / G query heads each.

    allowed: bool, broadcastable to (B, H, S, T), or None.
    """
    b, h, s, d = q_BHSD.shape
    g, t = k_BGTD.shape[1], k_BGTD.shape[2]
    # Query heads that share a key head are stacked along the sequence: no copy of k and v.
    q = (q_BHSD * scale).reshape(b, g, h // g * s, d)
    scores = cast(_times_transposed(q, k_BGTD).reshape(b * h * s, t), ms.float32)
    if allowed is not None:
        times = tuple(full // given for full, given in zip((b, h, s, t), allowed.shape))
        scores = scores + mint.tile(mint.where(allowed, 0.0, LOWEST), times).reshape(b * h * s, t)
    weights = cast(mint.nn.functional.softmax(scores, -1), v_BGTD.dtype).reshape(b, g, h // g * s, t)
    return _times(weights, v_BGTD).reshape(b, h, s, d)


def concat(tensors, axis: int):
    """Join tensors along an axis."""
    return mint.cat(tensors, axis)


def upsample_nearest2(x_NCHW):
    """Repeat every pixel twice along both sides: (N, C, H, W) -> (N, C, 2H, 2W)."""
    n, c, h, w = x_NCHW.shape
    x = mint.broadcast_to(x_NCHW.reshape(n, c, h, 1, w, 1), (n, c, h, 2, w, 2))
    return x.reshape(n, c, 2 * h, 2 * w)


def pad_right_bottom(x_NCHW):
    """One row of zeros below and one column of zeros to the right, as the VAE's downsampling asks."""
    n, c, h, w = x_NCHW.shape
    x = mint.cat((x_NCHW, mint.zeros((n, c, h, 1), dtype=x_NCHW.dtype)), 3)
    return mint.cat((x, mint.zeros((n, c, 1, w + 1), dtype=x_NCHW.dtype)), 2)
