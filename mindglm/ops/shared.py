"""Operations whose one form runs on every device."""

from mindspore import mint


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
