"""The DiT's config.json (diffusers GlmImageTransformer2DModel) and scheduler_config.json, read and written."""

from mindglm.errors import UserError
from mindglm.recipe.models import DiTConfig, SchedulerConfig

CLASS_NAME = "GlmImageTransformer2DModel"
DIFFUSERS_VERSION = "0.37.0.dev0"

_FIELDS = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_embed_dim",
           "time_embed_dim", "condition_dim", "prior_vq_quantizer_codebook_size", "patch_size")

_SCHEDULER_FIELDS = ("num_train_timesteps", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")

_SCHEDULER_FIXED = {
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "time_shift_type": "linear",
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
}
"""What scheduler.py computes (reference section 2.9); any other value is refused."""


def from_hf(config: dict) -> DiTConfig:
    """The structure that `transformer/config.json` describes.

    The class defaults of diffusers are another model (64 heads of 40), so a missing field is an error.
    """
    missing = [field for field in _FIELDS if config.get(field) is None]
    if missing:
        raise UserError(f"transformer/config.json: {', '.join(missing)} missing; expected the config.json of a "
                        "GLM-Image DiT decoder")
    return DiTConfig(**{field: config[field] for field in _FIELDS})


def to_hf(config: DiTConfig) -> dict:
    """`transformer/config.json` as diffusers reads it."""
    return {"_class_name": CLASS_NAME, "_diffusers_version": DIFFUSERS_VERSION,
            **{field: getattr(config, field) for field in _FIELDS}}


def scheduler_from_hf(config: dict) -> SchedulerConfig:
    """The numbers of `scheduler/scheduler_config.json`.

    Raises:
        UserError: the file asks for another schedule than the linear resolution shift.
    """
    for key, expected in _SCHEDULER_FIXED.items():
        given = config.get(key, expected)
        if given != expected:
            raise UserError(f"scheduler/scheduler_config.json: {key} is {given!r}, expected {expected!r}")
    return SchedulerConfig(**{field: config[field] for field in _SCHEDULER_FIELDS if field in config})


def scheduler_to_hf(config: SchedulerConfig) -> dict:
    """`scheduler/scheduler_config.json` as diffusers reads it."""
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": DIFFUSERS_VERSION,
            **_SCHEDULER_FIXED, **{field: getattr(config, field) for field in _SCHEDULER_FIELDS}}
