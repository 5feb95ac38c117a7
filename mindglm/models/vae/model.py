"""The VAE: images to 8x smaller latents and back, in the shape of diffusers' AutoencoderKL (reference section 2.7).

Departures from a textbook convolutional VAE: no attention in the middle, no quant convolutions, downsampling pads only
right and bottom, the decoder has one resnet more a level than the encoder, latents are normalised by a mean and a
standard deviation per channel (`scaling_factor` is unused), and encoding takes the mode of the posterior.

Shapes: N images, C channels, H W pixel sides, h w latent sides (H / 8, W / 8), Z latent channels.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn

from mindglm import ops
from mindglm.recipe.models import VAEConfig

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


class Conv2d(nn.Cell):
    """Convolution with bias; `weight` (out, in, k, k)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, init=None):
        super().__init__()
        self.stride, self.padding = stride, padding
        init = init or ("normal", 1.0 / math.sqrt(in_channels * kernel * kernel))
        self.weight = ops.param((out_channels, in_channels, kernel, kernel), init)
        self.bias = ops.param((out_channels,))

    def construct(self, x_NCHW):
        return ops.conv2d(x_NCHW, self.weight, self.bias, self.stride, self.padding)


class GroupNorm(nn.Cell):
    """GroupNorm with affine, eps 1e-6."""

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups = groups
        self.weight = ops.param((channels,), "ones")
        self.bias = ops.param((channels,))

    def construct(self, x_NCHW):
        return ops.group_norm(x_NCHW, self.groups, self.weight, self.bias, EPS)


class Resnet(nn.Cell):
    """Two norm-silu-conv steps beside a shortcut (a 1x1 convolution where the channels change)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, init="zeros")  # a fresh resnet passes x on
        self.changes_channels = in_channels != out_channels
        if self.changes_channels:
            self.conv_shortcut = Conv2d(in_channels, out_channels, 1)

    def construct(self, x_NCHW):
        y = self.conv1(ops.silu(self.norm1(x_NCHW)))
        y = self.conv2(ops.silu(self.norm2(y)))
        if self.changes_channels:
            return self.conv_shortcut(x_NCHW) + y
        return x_NCHW + y


class Downsample(nn.Cell):
    """Half the sides: one row and column of zeros right and bottom, then a 3x3 convolution with stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def construct(self, x_NCHW):
        return self.conv(ops.pad_right_bottom(x_NCHW))


class Upsample(nn.Cell):
    """Twice the sides: nearest pixels, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def construct(self, x_NCHW):
        return self.conv(ops.upsample_nearest2(x_NCHW))


class DownBlock(nn.Cell):
    """One encoder level; every level but the last ends in a downsampling."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = nn.CellList([Resnet(in_channels if i == 0 else out_channels, out_channels, groups)
                                    for i in range(layers)])
        self.last = last
        if not last:
            self.downsamplers = nn.CellList([Downsample(out_channels)])

    def construct(self, x_NCHW):
        for resnet in self.resnets:
            x_NCHW = resnet(x_NCHW)
        return x_NCHW if self.last else self.downsamplers[0](x_NCHW)


class UpBlock(nn.Cell):
    """One decoder level; every level but the last ends in an upsampling."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = nn.CellList([Resnet(in_channels if i == 0 else out_channels, out_channels, groups)
                                    for i in range(layers)])
        self.last = last
        if not last:
            self.upsamplers = nn.CellList([Upsample(out_channels)])

    def construct(self, x_NCHW):
        for resnet in self.resnets:
            x_NCHW = resnet(x_NCHW)
        return x_NCHW if self.last else self.upsamplers[0](x_NCHW)


class MidBlock(nn.Cell):
    """Two resnets between encoder or decoder levels and the narrow end."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.CellList([Resnet(channels, channels, groups) for _ in range(2)])

    def construct(self, x_NCHW):
        return self.resnets[1](self.resnets[0](x_NCHW))


class Encoder(nn.Cell):
    """Images (N, 3, H, W) -> moments (N, 2 Z, h, w): the mean, then the log variance."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        entry = (widths[0],) + widths
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.CellList([
            DownBlock(entry[i], widths[i], config.layers_per_block, groups, last=i == len(widths) - 1)
            for i in range(len(widths))])
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def construct(self, x_NCHW):
        x_NCHW = self.conv_in(ops.cast(x_NCHW, self.conv_in.weight.dtype))
        for block in self.down_blocks:
            x_NCHW = block(x_NCHW)
        x_NCHW = self.mid_block(x_NCHW)
        return self.conv_out(ops.silu(self.conv_norm_out(x_NCHW)))


class Decoder(nn.Cell):
    """Latents as the encoder's mean gives them (N, Z, h, w) -> images (N, 3, H, W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        entry = (widths[0],) + widths
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.CellList([
            UpBlock(entry[i], widths[i], config.layers_per_block + 1, groups, last=i == len(widths) - 1)
            for i in range(len(widths))])
        self.conv_norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def construct(self, z_NZhw):
        x_NCHW = self.mid_block(self.conv_in(ops.cast(z_NZhw, self.conv_in.weight.dtype)))
        for block in self.up_blocks:
            x_NCHW = block(x_NCHW)
        return self.conv_out(ops.silu(self.conv_norm_out(x_NCHW)))


class VAE(nn.Cell):
    """Encoder and decoder. Parameters carry the names of the released `vae` component.

    Images are float32 in [-1, 1] with sides that are multiples of `config.spatial_factor`.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.latents_mean = _per_channel(config.latents_mean, config.latent_channels)
        self.latents_std = _per_channel(config.latents_std, config.latent_channels)

    def construct(self, x_NCHW):
        """Images through the narrow end and back: (N, 3, H, W) -> (N, 3, H, W)."""
        return self.decode(self.encode(x_NCHW))

    def moments(self, x_NCHW):
        """Mean and log variance of the posterior, each (N, Z, h, w); the log variance clamped to [-30, 20]."""
        mean, logvar = mint.split(self.encoder(x_NCHW), self.config.latent_channels, 1)
        return mean, mint.clamp(ops.cast(logvar, ms.float32), LOGVAR_RANGE[0], LOGVAR_RANGE[1])

    def encode(self, x_NCHW):
        """Images -> normalised latents (N, Z, h, w): the posterior's mode, minus the mean, over the deviation."""
        mean, _ = self.moments(x_NCHW)
        return (mean - ops.cast(self.latents_mean, mean.dtype)) / ops.cast(self.latents_std, mean.dtype)

    def decode(self, z_NZhw):
        """Normalised latents -> images (N, 3, H, W), not clamped."""
        z_NZhw = ops.cast(z_NZhw, self.decoder.conv_in.weight.dtype)
        std, mean = ops.cast(self.latents_std, z_NZhw.dtype), ops.cast(self.latents_mean, z_NZhw.dtype)
        return self.decoder(z_NZhw * std + mean)


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    assert len(values) == channels, f"{len(values)} numbers for {channels} latent channels"
    return Tensor(np.asarray(values, np.float32).reshape(1, -1, 1, 1))
