"""`vision_language_encoder/config.json` of the released layout <-> ArGeneratorConfig."""

from collections.abc import Mapping

from mindglm.errors import UserError
from mindglm.recipe.models import ArGeneratorConfig, TextConfig, VisionConfig, VQConfig

CONSTANTS = {
    "text_config": {"hidden_act": "silu", "attention_bias": True, "attention_dropout": 0.0},
    "vision_config": {
        "hidden_act": "gelu", "attention_bias": True, "attention_dropout": 0.0, "spatial_merge_size": 1,
        "in_channels": 3,
    },
    "vq_config": {"in_channels": 3},
    "rope": {"rope_type": "default"},
}
"""Fields with one legal value: the Cells compute nothing else."""

LIBRARY_DEFAULTS = {
    "text_config": {"rms_norm_eps": 1e-5, "max_position_embeddings": 131072},
    "vision_config": {"patch_size": 16, "in_channels": 3, "layer_norm_eps": 1e-6},
    "vq_config": {"num_embeddings": 16384, "latent_channels": 1536, "embed_dim": 2048},
    "rope": {"rope_theta": 10000, "partial_rotary_factor": 1.0, "mrope_section": [8, 12, 12]},
}
"""What transformers 5.23 (`configuration_glm_image.py`) takes when the json leaves a field out."""


def from_hf(json: Mapping) -> ArGeneratorConfig:
    """The structure a released config.json describes. UserError when a field is missing or not computable here."""
    text, rope = _section(json, "text_config"), _section(json["text_config"], "rope_parameters", "rope")
    vision, vq = _section(json, "vision_config"), _section(json, "vq_config")
    heads = _get(text, "num_attention_heads")
    config = ArGeneratorConfig(
        text_config=TextConfig(
            **{name: _get(text, name) for name in (
                "vocab_size", "vision_vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads", "rms_norm_eps", "max_position_embeddings")},
            num_key_value_heads=text.get("num_key_value_heads") or heads,
            mrope_section=tuple(rope["mrope_section"]),
            partial_rotary_factor=rope["partial_rotary_factor"],
            rope_theta=rope["rope_theta"],
        ),
        vision_config=VisionConfig(**{name: _get(vision, name) for name in VisionConfig.__dataclass_fields__}),
        vq_config=VQConfig(**{name: _get(vq, name) for name in VQConfig.__dataclass_fields__}),
        image_start_token_id=_get(json, "image_start_token_id"),
        image_end_token_id=_get(json, "image_end_token_id"),
        image_token_id=_get(json, "image_token_id"),
        text_pad_token_id=_get(text, "pad_token_id"),
    )
    check(config)
    return config


def to_hf(config: ArGeneratorConfig) -> dict:
    """The config.json of `config`, with every field the public classes read."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    return {
        "architectures": ["GlmImageForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_end_token_id": config.image_end_token_id,
        "image_start_token_id": config.image_start_token_id,
        "image_token_id": config.image_token_id,
        "model_type": "glm_image",
        "text_config": {
            **CONSTANTS["text_config"],
            **{name: getattr(text, name) for name in (
                "vocab_size", "vision_vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")},
            "eos_token_id": config.image_end_token_id,
            "pad_token_id": config.text_pad_token_id,
            "initializer_range": 0.02,
            "model_type": "glm_image_text",
            "rope_parameters": {
                "mrope_section": list(text.mrope_section),
                "partial_rotary_factor": text.partial_rotary_factor,
                "rope_theta": text.rope_theta,
                "rope_type": "default",
            },
            "use_cache": True,
        },
        "tie_word_embeddings": False,
        "transformers_version": "5.23.0",
        "vision_config": {
            **CONSTANTS["vision_config"],
            **{name: getattr(vision, name) for name in VisionConfig.__dataclass_fields__},
            "initializer_range": 0.02,
            "model_type": "glm_image_vision",
        },
        "vq_config": {
            **CONSTANTS["vq_config"],
            **{name: getattr(vq, name) for name in VQConfig.__dataclass_fields__},
            "initializer_range": 0.02,
            "model_type": "glm_image_vqmodel",
        },
    }


def check(config: ArGeneratorConfig) -> None:
    """UserError when the numbers do not fit each other (all faults in one message)."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    rules = [
        (text.hidden_size % text.num_attention_heads == 0,
         f"hidden_size {text.hidden_size} is not a multiple of num_attention_heads {text.num_attention_heads}"),
        (text.num_attention_heads % text.num_key_value_heads == 0,
         f"num_attention_heads {text.num_attention_heads} is not a multiple of num_key_value_heads "
         f"{text.num_key_value_heads}"),
        (len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.rotary_dim,
         f"mrope_section {list(text.mrope_section)} must be three numbers whose sum is half the rotary dims: head_dim "
         f"{text.head_dim} x partial_rotary_factor {text.partial_rotary_factor} / 2 = {text.rotary_dim / 2:g}"),
        (text.vision_vocab_size <= text.vocab_size,
         f"vision_vocab_size {text.vision_vocab_size} exceeds vocab_size {text.vocab_size}"),
        (config.num_codes <= min(config.image_start_token_id, config.image_end_token_id)
         and max(config.image_start_token_id, config.image_end_token_id) < text.vision_vocab_size,
         f"image start and end ids {config.image_start_token_id}, {config.image_end_token_id} must lie after the "
         f"{config.num_codes} codes and below vision_vocab_size {text.vision_vocab_size}"),
        (vision.hidden_size % vision.num_heads == 0,
         f"vision hidden_size {vision.hidden_size} is not a multiple of num_heads {vision.num_heads}"),
        (vision.image_size % vision.patch_size == 0,
         f"vision image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}"),
        (vq.latent_channels == vision.hidden_size,
         f"vq latent_channels {vq.latent_channels} must be the tower's hidden_size {vision.hidden_size}"),
    ]
    faults = [message for holds, message in rules if not holds]
    if faults:
        raise UserError("this AR generator cannot be built: " + "; ".join(faults))


def _section(json: Mapping, name: str, kind: str = "") -> dict:
    """A section of the json with the library's defaults; refuses values the Cells do not compute."""
    kind = kind or name
    if not isinstance(json.get(name), Mapping):
        raise UserError(f"vision_language_encoder/config.json: section {name!r} is missing; expected the config of a "
                        "GLM-Image AR generator")
    section = {**LIBRARY_DEFAULTS[kind], **{k: v for k, v in json[name].items() if v is not None}}
    for field, value in CONSTANTS[kind].items():
        if section.get(field, value) != value:
            raise UserError(f"vision_language_encoder/config.json: {name}.{field} is {section[field]!r}; "
                            f"only {value!r} is supported")
    return section


def _get(section: Mapping, name: str):
    if name not in section:
        raise UserError(f"vision_language_encoder/config.json: field {name!r} is missing; expected the config of a "
                        "GLM-Image AR generator")
    return section[name]
