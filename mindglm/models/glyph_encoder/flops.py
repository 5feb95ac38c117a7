"""Floating point operations of the glyph encoder: a multiply-add counts as two; norms and activations are left out."""

from mindglm.recipe.models import GlyphConfig


def forward_flops(config: GlyphConfig, tokens: int) -> int:
    """One string of `tokens` bytes."""
    inner = config.num_heads * config.d_kv
    linear = 4 * config.d_model * inner + 3 * config.d_model * config.d_ff
    attention = 2 * tokens * inner
    return 2 * tokens * config.num_layers * (linear + attention)
