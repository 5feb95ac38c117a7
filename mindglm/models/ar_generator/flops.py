"""Floating point operations of the AR generator (a multiply-add counts as two)."""

from mindglm.recipe.models import ArGeneratorConfig


def forward_flops(config: ArGeneratorConfig, batch: int, length: int) -> int:
    """One causal pass over `batch` sequences of `length` tokens, head included; norms and rotations are left out."""
    text = config.text_config
    d, kv, inter = text.hidden_size, text.num_key_value_heads * text.head_dim, text.intermediate_size
    weights_layer = d * (2 * d + 2 * kv) + 3 * d * inter
    attention_layer = 2 * d * (length + 1) // 2  # q k^T and weights v over the average (length + 1) / 2 visible keys
    per_token = text.num_hidden_layers * (weights_layer + attention_layer) + d * text.vision_vocab_size
    return 2 * batch * length * per_token


def train_flops(config: ArGeneratorConfig, batch: int, length: int) -> int:
    """Forward and backward of one step (the backward costs twice the forward)."""
    return 3 * forward_flops(config, batch, length)


def decode_flops(config: ArGeneratorConfig, batch: int, cached: int) -> int:
    """One cached decoding step of `batch` tokens that see `cached` keys each, the new one included."""
    text = config.text_config
    d, kv, inter = text.hidden_size, text.num_key_value_heads * text.head_dim, text.intermediate_size
    per_layer = d * (2 * d + 2 * kv) + 3 * d * inter + 2 * d * cached
    return 2 * batch * (text.num_hidden_layers * per_layer + d * text.vision_vocab_size)


def vision_forward_flops(config: ArGeneratorConfig, images: int, rows: int, columns: int) -> int:
    """Tower and quantiser over `images` images of rows x columns patches."""
    vision, vq = config.vision_config, config.vq_config
    d, n = vision.hidden_size, rows * columns
    block = d * 4 * d + 2 * d * vision.intermediate_size + 2 * d * n
    quantise = d * vq.embed_dim + vq.embed_dim * vq.num_embeddings
    return 2 * images * n * (vision.patch_dim * d + vision.depth * block + quantise)


def unit_names(config: ArGeneratorConfig) -> list[str]:
    """What can be put on a stage, in order."""
    return ["embedding", *(f"layer {i}" for i in range(config.text_config.num_hidden_layers)), "head"]


def unit_flops(config: ArGeneratorConfig, length: int) -> list[int]:
    """Floating point operations of each unit's forward pass over one sequence of `length` tokens.

    They sum to forward_flops(config, 1, length).
    """
    text = config.text_config
    d, kv = text.hidden_size, text.num_key_value_heads * text.head_dim
    attention = 2 * d * (length + 1) // 2
    layer = 2 * length * (d * (2 * d + 2 * kv) + 3 * d * text.intermediate_size + attention)
    return [0, *[layer] * text.num_hidden_layers, 2 * length * d * text.vision_vocab_size]
