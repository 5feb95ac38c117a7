"""Names and shapes of the released `transformer` component, from the config alone (reference section 4.2)."""

from mindglm.models.names import Pair, same_names
from mindglm.recipe.models import DiTConfig

COMPONENT = "transformer"
DTYPE = "bfloat16"
ALIASES: dict[str, str] = {}
"""Names under which a released file may hold a tensor a second time: none."""

Shapes = dict[str, tuple[int, ...]]


def tensors(config: DiTConfig) -> Shapes:
    """Every tensor of the component: name -> shape. Nothing is allocated."""
    d, time = config.hidden_size, config.time_embed_dim
    patch = config.patch_size**2
    embed = "time_condition_embed"
    found = {
        **_linear("image_projector.proj", config.in_channels * patch, d),
        **_feed_forward("glyph_projector", config.text_embed_dim, d, d),
        "prior_token_embedding.weight": (config.prior_vq_quantizer_codebook_size, d),
        **_feed_forward("prior_projector", d, d, d),
        **_linear(f"{embed}.timestep_embedder.linear_1", time, time),
        **_linear(f"{embed}.timestep_embedder.linear_2", time, time),
        **_linear(f"{embed}.condition_embedder.linear_1", 4 * config.condition_dim, time),
        **_linear(f"{embed}.condition_embedder.linear_2", time, time),
    }
    for i in range(config.num_layers):
        found.update(block_tensors(config, f"transformer_blocks.{i}"))
    return {**found, **_linear("norm_out.linear", time, 2 * d), **_linear("proj_out", d, config.out_channels * patch)}


def name_map(config: DiTConfig) -> list[Pair]:
    """Our parameter names <-> released names: the same, tensor for tensor; ALIASES may stand beside them."""
    return same_names(tensors(config))


def block_tensors(config: DiTConfig, name: str) -> Shapes:
    """The tensors of one transformer block."""
    d = config.hidden_size
    found = _linear(f"{name}.norm1.linear", config.time_embed_dim, 12 * d)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        found.update(_linear(f"{name}.attn1.{part}", d, d))
    return {**found, **_feed_forward(f"{name}.ff", d, 4 * d, d)}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _feed_forward(name: str, inputs: int, inner: int, outputs: int) -> Shapes:
    return {**_linear(f"{name}.net.0.proj", inputs, inner), **_linear(f"{name}.net.2", inner, outputs)}
