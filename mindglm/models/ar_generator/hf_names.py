"""Names and shapes of the released `vision_language_encoder` component, without allocating anything (section 4.2)."""

from mindglm.models.names import Pair, same_names
from mindglm.recipe.models import ArGeneratorConfig

COMPONENT = "vision_language_encoder"
DTYPE = "bfloat16"
ALIASES: dict[str, str] = {}
"""Names under which a released file may hold a tensor a second time: none."""

LANGUAGE_PREFIXES = ("model.language_model.", "lm_head.")
TOKENIZER_PREFIXES = ("model.visual.", "model.vqmodel.")


def tensors(config: ArGeneratorConfig) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} of the whole component."""
    return {**language_tensors(config), **tokenizer_tensors(config)}


def name_map(config: ArGeneratorConfig) -> list[Pair]:
    """Our parameter names <-> released names: the same, tensor for tensor; ALIASES may stand beside them."""
    return same_names(tensors(config))


def language_tensors(config: ArGeneratorConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the decoder and its head."""
    text = config.text_config
    d, kv, inter = text.hidden_size, text.num_key_value_heads * text.head_dim, text.intermediate_size
    out = {"model.language_model.embed_tokens.weight": (text.vocab_size, d)}
    for i in range(text.num_hidden_layers):
        layer = f"model.language_model.layers.{i}."
        for name, rows in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            out[f"{layer}self_attn.{name}.weight"] = (rows, d)
            out[f"{layer}self_attn.{name}.bias"] = (rows,)
        out[f"{layer}self_attn.o_proj.weight"] = (d, d)
        out[f"{layer}mlp.gate_up_proj.weight"] = (2 * inter, d)
        out[f"{layer}mlp.down_proj.weight"] = (d, inter)
        for name in ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"):
            out[f"{layer}{name}.weight"] = (d,)
    out["model.language_model.norm.weight"] = (d,)
    out["lm_head.weight"] = (text.vision_vocab_size, d)
    return out


def tokenizer_tensors(config: ArGeneratorConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the vision tower and the VQ."""
    vision, vq = config.vision_config, config.vq_config
    d, inter = vision.hidden_size, vision.intermediate_size
    out = {
        "model.visual.patch_embed.proj.weight": (d, vision.in_channels, vision.patch_size, vision.patch_size),
        "model.visual.patch_embed.proj.bias": (d,),
        "model.visual.embeddings.position_embedding.weight": (vision.table_side**2, d),
    }
    for i in range(vision.depth):
        block = f"model.visual.blocks.{i}."
        for name in ("norm1", "norm2"):
            out[f"{block}{name}.weight"] = out[f"{block}{name}.bias"] = (d,)
        for name, rows, columns in (("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", inter, d),
                                    ("mlp.fc2", d, inter)):
            out[f"{block}{name}.weight"] = (rows, columns)
            out[f"{block}{name}.bias"] = (rows,)
    out["model.vqmodel.quantize.embedding.weight"] = (vq.num_embeddings, vq.embed_dim)
    for name, rows, columns in (("quant_conv", vq.embed_dim, vq.latent_channels),
                                ("post_quant_conv", vq.latent_channels, vq.embed_dim)):
        out[f"model.vqmodel.{name}.weight"] = (rows, columns, 1, 1)
        out[f"model.vqmodel.{name}.bias"] = (rows,)
    return out
