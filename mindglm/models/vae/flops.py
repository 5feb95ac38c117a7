"""Floating point operations of the VAE: a multiply-add counts as two; norms and activations are left out."""

import math

from mindglm.models.vae import hf_names
from mindglm.recipe.models import VAEConfig


def encode_flops(config: VAEConfig, height: int, width: int) -> int:
    """One image of height x width pixels through the encoder."""
    return _half(config, "encoder", height * width)


def decode_flops(config: VAEConfig, height: int, width: int) -> int:
    """One image of height x width pixels out of the decoder."""
    return _half(config, "decoder", height * width)


def _half(config: VAEConfig, half: str, pixels: int) -> int:
    """Every convolution weight is used once for each pixel of its output."""
    total = 0
    for name, shape in hf_names.tensors(config).items():
        if len(shape) == 4 and name.startswith(half):
            total += 2 * math.prod(shape) * (pixels // 4 ** _halvings(name, len(config.block_out_channels)))
    return total


def _halvings(name: str, levels: int) -> int:
    """How many times both sides are halved at the output of a convolution."""
    parts = name.split(".")
    if parts[1] == "down_blocks":
        return int(parts[2]) + (parts[3] == "downsamplers")
    if parts[1] == "up_blocks":
        return levels - 1 - int(parts[2]) - (parts[3] == "upsamplers")
    full_size = name.startswith(("encoder.conv_in", "decoder.conv_out"))
    return 0 if full_size else levels - 1
