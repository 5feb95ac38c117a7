"""Floating point operations of the DiT: a multiply-add counts as two; norms, activations and softmax are left out."""

from mindglm.recipe.models import DiTConfig


def forward_flops(config: DiTConfig, image_tokens: int, text_tokens: int) -> int:
    """One sample's forward pass; image_tokens = latent pixels / patch_size^2. Training costs three times this."""
    d, tokens = config.hidden_size, image_tokens + text_tokens
    patch = config.patch_size**2
    block = tokens * (4 * d * d + 8 * d * d) + 2 * tokens * tokens * d + config.time_embed_dim * 12 * d
    image = image_tokens * ((config.in_channels + config.out_channels) * patch * d + 2 * d * d)
    text = text_tokens * (config.text_embed_dim * d + d * d)
    embed = config.time_embed_dim * (3 * config.time_embed_dim + 4 * config.condition_dim + 2 * d)
    return 2 * (config.num_layers * block + image + text + embed)


def unit_names(config: DiTConfig) -> list[str]:
    """What can be put on a stage, in order."""
    return ["inputs", *(f"block {i}" for i in range(config.num_layers)), "output"]


def unit_flops(config: DiTConfig, image_tokens: int, text_tokens: int) -> list[int]:
    """Floating point operations of each unit's forward pass of one sample; sum = forward_flops."""
    d, tokens, patch = config.hidden_size, image_tokens + text_tokens, config.patch_size**2
    e = config.time_embed_dim
    inputs = image_tokens * (config.in_channels * patch * d + 2 * d * d) + text_tokens * (config.text_embed_dim + d) * d
    inputs = inputs + e * (3 * e + 4 * config.condition_dim)
    block = tokens * (4 * d * d + 8 * d * d) + 2 * tokens * tokens * d + e * 12 * d
    output = image_tokens * config.out_channels * patch * d + e * 2 * d
    return [2 * inputs, *[2 * block] * config.num_layers, 2 * output]
