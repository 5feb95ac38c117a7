"""The VAE's config.json (diffusers AutoencoderKL) read into and written from `VAEConfig`."""

from mindglm.errors import UserError
from mindglm.recipe.models import VAEConfig

CLASS_NAME = "AutoencoderKL"

_FIXED = {
    "act_fn": "silu",
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""Structure this Cell is written for (reference section 2.7); any other value is refused."""

_UNUSED = {"force_upcast": True, "scaling_factor": 0.18215, "shift_factor": None, "_diffusers_version": "0.37.0.dev0"}
"""Written on export as the release has them; nothing here reads them."""


def from_hf(config: dict) -> VAEConfig:
    """The structure that `vae/config.json` describes.

    Raises:
        UserError: a field is missing or asks for a structure this VAE does not have.
    """
    for key, expected in _FIXED.items():
        given = config.get(key, expected)
        if given != expected:
            raise UserError(f"vae/config.json: {key} is {given!r}, expected {expected!r}; this VAE has one structure")
    try:
        return VAEConfig(
            block_out_channels=tuple(config["block_out_channels"]),
            layers_per_block=config["layers_per_block"],
            latent_channels=config["latent_channels"],
            norm_num_groups=config["norm_num_groups"],
            latents_mean=tuple(config["latents_mean"]),
            latents_std=tuple(config["latents_std"]),
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            sample_size=config["sample_size"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"vae/config.json: field missing or null ({error}); expected the config.json of a GLM-Image VAE"
        ) from error


def to_hf(config: VAEConfig) -> dict:
    """`vae/config.json` as diffusers reads it."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": CLASS_NAME,
        **_UNUSED,
        **_FIXED,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
    }
