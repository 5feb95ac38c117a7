"""Names and shapes of the released `vae` component, from the config alone (reference section 4.2)."""

from mindglm.models.names import Pair, same_names
from mindglm.recipe.models import VAEConfig

COMPONENT = "vae"
DTYPE = "bfloat16"
ALIASES: dict[str, str] = {}
"""Names under which a released file may hold a tensor a second time: none."""

Shapes = dict[str, tuple[int, ...]]


def tensors(config: VAEConfig) -> Shapes:
    """Every tensor of the component: name -> shape. Nothing is allocated."""
    return {**_encoder(config), **_decoder(config)}


def name_map(config: VAEConfig) -> list[Pair]:
    """Our parameter names <-> released names: the same, tensor for tensor; ALIASES may stand beside them."""
    return same_names(tensors(config))


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _resnet(name: str, inputs: int, outputs: int) -> Shapes:
    shortcut = {} if inputs == outputs else _conv(f"{name}.conv_shortcut", inputs, outputs, 1)
    return {**_norm(f"{name}.norm1", inputs), **_conv(f"{name}.conv1", inputs, outputs),
            **_norm(f"{name}.norm2", outputs), **_conv(f"{name}.conv2", outputs, outputs), **shortcut}


def _levels(prefix: str, widths: tuple[int, ...], layers: int, sampler: str) -> Shapes:
    found: Shapes = {}
    entry = (widths[0],) + widths
    for level, width in enumerate(widths):
        for i in range(layers):
            found.update(_resnet(f"{prefix}.{level}.resnets.{i}", entry[level] if i == 0 else width, width))
        if level < len(widths) - 1:
            found.update(_conv(f"{prefix}.{level}.{sampler}.0.conv", width, width))
    return found


def _encoder(config: VAEConfig) -> Shapes:
    widths = config.block_out_channels
    found = _conv("encoder.conv_in", config.in_channels, widths[0])
    found.update(_levels("encoder.down_blocks", widths, config.layers_per_block, "downsamplers"))
    for i in range(2):
        found.update(_resnet(f"encoder.mid_block.resnets.{i}", widths[-1], widths[-1]))
    found.update(_norm("encoder.conv_norm_out", widths[-1]))
    return {**found, **_conv("encoder.conv_out", widths[-1], 2 * config.latent_channels)}


def _decoder(config: VAEConfig) -> Shapes:
    widths = config.block_out_channels[::-1]
    found = _conv("decoder.conv_in", config.latent_channels, widths[0])
    for i in range(2):
        found.update(_resnet(f"decoder.mid_block.resnets.{i}", widths[0], widths[0]))
    found.update(_levels("decoder.up_blocks", widths, config.layers_per_block + 1, "upsamplers"))
    found.update(_norm("decoder.conv_norm_out", widths[-1]))
    return {**found, **_conv("decoder.conv_out", widths[-1], config.out_channels)}
