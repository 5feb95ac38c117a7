"""Operations whose one form runs on every device. Shape letters as in `composed.py`."""

import mindspore as ms
import numpy as np
from mindspore import mint

LOWEST = float(np.finfo(np.float32).min)


def cast(x, dtype):
    """x in another dtype; x itself when it has it already: on CPU even an idle cast costs as much as a product."""
    return x if x.dtype == dtype else x.to(dtype)


def linear(x, w, b=None):
    """x (..., in) times w (out, in) transposed, plus b (out,)."""
    return mint.nn.functional.linear(x, w, b)


def silu(x):
    """x * sigmoid(x)."""
    return mint.nn.functional.silu(x)


def group_norm(x_NCHW, groups: int, w_C, b_C, eps: float):
    """GroupNorm with affine."""
    return mint.nn.functional.group_norm(x_NCHW, groups, w_C, b_C, eps)


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
    scores = mint.matmul(q, k_BGTD.swapaxes(2, 3))
    scores = cast(scores, ms.float32)
    if allowed is not None:
        bias = mint.where(allowed, 0.0, LOWEST)
        scores = (scores.reshape(b, h, s, t) + bias).reshape(b, g, h // g * s, t)
    weights = cast(mint.nn.functional.softmax(scores, -1), v_BGTD.dtype)
    return mint.matmul(weights, v_BGTD).reshape(b, h, s, d)


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
