"""Names and shapes of the released `text_encoder` component, from the config alone (reference section 4.2)."""

from mindglm.models.names import Pair, same_names
from mindglm.recipe.models import GlyphConfig

COMPONENT = "text_encoder"
DTYPE = "float32"
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
"""Names under which a released file may hold a tensor a second time, with the same values, or instead."""


def tensors(config: GlyphConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the component: name -> shape. Nothing is allocated."""
    d, inner = config.d_model, config.num_heads * config.d_kv
    found: dict[str, tuple[int, ...]] = {"shared.weight": (config.vocab_size, d)}
    for i in range(config.num_layers):
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for name in ("q", "k", "v"):
            found[f"{attention}.SelfAttention.{name}.weight"] = (inner, d)
        found[f"{attention}.SelfAttention.o.weight"] = (d, inner)
        if i == 0:
            buckets = (config.relative_attention_num_buckets, config.num_heads)
            found[f"{attention}.SelfAttention.relative_attention_bias.weight"] = buckets
        found[f"{attention}.layer_norm.weight"] = (d,)
        for name in ("wi_0", "wi_1"):
            found[f"{feed_forward}.DenseReluDense.{name}.weight"] = (config.d_ff, d)
        found[f"{feed_forward}.DenseReluDense.wo.weight"] = (d, config.d_ff)
        found[f"{feed_forward}.layer_norm.weight"] = (d,)
    found["encoder.final_layer_norm.weight"] = (d,)
    return found


def name_map(config: GlyphConfig) -> list[Pair]:
    """Our parameter names <-> released names: the same, tensor for tensor; ALIASES may stand beside them."""
    return same_names(tensors(config))
