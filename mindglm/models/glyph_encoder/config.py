"""The glyph encoder's config.json (transformers T5EncoderModel) read into and written from `GlyphConfig`."""

from mindglm.errors import UserError
from mindglm.recipe.models import GlyphConfig

_FIXED = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
"""Structure this Cell is written for (reference section 2.8); any other value is refused."""

_UNUSED = {
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "dtype": "float32",
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "is_gated_act": True,
    "num_decoder_layers": 1,
    "pad_token_id": 0,
    "scale_decoder_outputs": False,
    "tie_word_embeddings": True,
    "transformers_version": "5.0.0.dev0",
    "use_cache": False,
}
"""Written on export for transformers; nothing here reads them."""

_FIELDS = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size", "relative_attention_num_buckets",
           "relative_attention_max_distance", "layer_norm_epsilon")


def from_hf(config: dict) -> GlyphConfig:
    """The structure that `text_encoder/config.json` describes.

    Raises:
        UserError: a field is missing or asks for a structure this encoder does not have.
    """
    for key, expected in _FIXED.items():
        given = config.get(key, expected)
        if given != expected:
            raise UserError(f"text_encoder/config.json: {key} is {given!r}, expected {expected!r} (a ByT5 encoder)")
    missing = [field for field in _FIELDS if config.get(field) is None]
    if missing:
        raise UserError(f"text_encoder/config.json: {', '.join(missing)} missing; expected the config.json of a ByT5 "
                        "encoder")
    return GlyphConfig(**{field: config[field] for field in _FIELDS})


def to_hf(config: GlyphConfig) -> dict:
    """`text_encoder/config.json` as transformers reads it."""
    return {**_UNUSED, **_FIXED, **{field: getattr(config, field) for field in _FIELDS}}
