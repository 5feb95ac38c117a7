"""What a model structure's numbers must satisfy among themselves; a part of `rules`."""

from collections.abc import Callable, Iterator

from mindglm.recipe.models import ArGeneratorConfig, DiTConfig, GlyphConfig, TextConfig, VAEConfig, VisionConfig

Violations = Iterator[tuple[str, object, str]]
"""(key below the section, the value given, what is expected and why)"""

PATCH_SIZE, DIT_PATCH_SIZE, VAE_LEVELS, RGB = 16, 2, 4, 3
"""A large code covers 32 pixels, a DiT token 16, a latent 8: the pipeline and the public classes rest on it."""


def multiple(given: int, name: str, of: int) -> str:
    """What is expected where `given` does not divide by `of`, the value of `name`."""
    near = max(of, round(given / of) * of) if of > 0 else given
    return f"a multiple of {name} ({of}), for instance {near}"


def _text_heads(text: TextConfig) -> Violations:
    hidden, heads, kv_heads = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    if min(hidden, heads, kv_heads) < 1:
        return
    if hidden % heads:
        yield "hidden_size", hidden, multiple(hidden, "num_attention_heads", heads)
    if heads % kv_heads:
        yield "num_attention_heads", heads, multiple(heads, "num_key_value_heads", kv_heads)


def _text_rotary(text: TextConfig) -> Violations:
    share, sections = text.partial_rotary_factor, text.mrope_section
    if text.num_attention_heads < 1 or text.hidden_size % text.num_attention_heads:
        return
    if not 0 < share <= 1:
        yield "partial_rotary_factor", share, "more than 0 and at most 1"
    elif text.rotary_dim % 2:
        yield "partial_rotary_factor", share, f"an even share of head_dim {text.head_dim}, not {text.rotary_dim} dims"
    elif min(sections) >= 0 and sum(sections) != text.rotary_dim // 2:
        yield "mrope_section", f"{list(sections)} with sum {sum(sections)}", (
            f"the sum {text.rotary_dim // 2}: half of head_dim {text.head_dim} * partial_rotary_factor {share}"
        )


def _text_vocabulary(text: TextConfig) -> Violations:
    words, image = text.vocab_size, text.vision_vocab_size
    if words <= image:
        yield "vocab_size", words, f"more than vision_vocab_size ({image}): the text ids follow the image ids"


def _vision(vision: VisionConfig) -> Violations:
    if vision.num_heads > 0 and vision.hidden_size % vision.num_heads:
        yield "hidden_size", vision.hidden_size, multiple(vision.hidden_size, "num_heads", vision.num_heads)
    if vision.patch_size != PATCH_SIZE:
        yield "patch_size", vision.patch_size, f"{PATCH_SIZE}: the processor and the pipeline rest on it"
    elif vision.image_size % vision.patch_size:
        yield "image_size", vision.image_size, multiple(vision.image_size, "patch_size", vision.patch_size)
    if vision.in_channels != RGB:
        yield "in_channels", vision.in_channels, f"{RGB} (red, green, blue)"


def _ar_tower_to_vq(config: ArGeneratorConfig) -> Violations:
    given, tower = config.vq_config.latent_channels, config.vision_config.hidden_size
    if given != tower:
        yield "vq_config.latent_channels", given, f"vision_config.hidden_size ({tower}), whose features it takes"


def _ar_token_ids(config: ArGeneratorConfig) -> Violations:
    codes, image, words = (
        config.vq_config.num_embeddings,
        config.text_config.vision_vocab_size,
        config.text_config.vocab_size,
    )
    mark = "an id the head can emit and no code: vq_config.num_embeddings <= id < vision_vocab_size"
    word = "a text id: vision_vocab_size <= id < vocab_size"
    for name, low, high, what in (
        ("image_start_token_id", codes, image, mark),
        ("image_end_token_id", codes, image, mark),
        ("image_token_id", image, words, word),
        ("text_pad_token_id", image, words, word),
    ):
        value = getattr(config, name)
        if not low <= value < high:
            yield name, value, f"{low} to {high - 1}, {what}"
    if config.image_start_token_id == config.image_end_token_id:
        yield "image_end_token_id", config.image_end_token_id, "an id other than image_start_token_id"


def _dit_widths(config: DiTConfig) -> Violations:
    width = config.attention_head_dim
    if width % 4:
        yield "attention_head_dim", width, "a multiple of 4: rows and columns rotate half of it each, in pairs"
    for name in ("time_embed_dim", "condition_dim"):
        if getattr(config, name) % 2:
            yield name, getattr(config, name), "an even number: half cosines, half sines"


def _dit_grid(config: DiTConfig) -> Violations:
    if config.patch_size != DIT_PATCH_SIZE:
        yield "patch_size", config.patch_size, f"{DIT_PATCH_SIZE}: a prior code covers 2 x 2 tokens"
    if config.in_channels != config.out_channels:
        yield "out_channels", config.out_channels, f"in_channels ({config.in_channels}): velocities are latents"


def _vae_levels(config: VAEConfig) -> Violations:
    levels, groups = len(config.block_out_channels), config.norm_num_groups
    if levels != VAE_LEVELS:
        yield "block_out_channels", f"{levels} levels", f"{VAE_LEVELS}: latents are 1/8 of the pixels a side"
    for i, channels in enumerate(config.block_out_channels):
        if channels > 0 and groups > 0 and channels % groups:
            yield f"block_out_channels[{i}]", channels, multiple(channels, "norm_num_groups", groups)
    for name in ("in_channels", "out_channels"):
        if getattr(config, name) != RGB:
            yield name, getattr(config, name), f"{RGB} (red, green, blue)"


def _vae_statistics(config: VAEConfig) -> Violations:
    for name in ("latents_mean", "latents_std"):
        count = len(getattr(config, name))
        if count != config.latent_channels:
            yield name, f"{count} numbers", f"one for each of the latent_channels ({config.latent_channels})"


def _glyph(config: GlyphConfig) -> Violations:
    if config.vocab_size < 259:
        yield "vocab_size", config.vocab_size, "at least 259: pad, end, unknown and 256 bytes"
    buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if buckets % 4:
        yield "relative_attention_num_buckets", buckets, "a multiple of 4: two directions, half exact, half logarithmic"
    elif distance <= buckets // 4:
        yield "relative_attention_max_distance", distance, f"more than the {buckets // 4} exact buckets of a direction"


STRUCTURE_RULES: dict[type, tuple[Callable[..., Violations], ...]] = {
    TextConfig: (_text_heads, _text_rotary, _text_vocabulary),
    VisionConfig: (_vision,),
    ArGeneratorConfig: (_ar_tower_to_vq, _ar_token_ids),
    DiTConfig: (_dit_widths, _dit_grid),
    VAEConfig: (_vae_levels, _vae_statistics),
    GlyphConfig: (_glyph,),
}
