"""What a model structure's numbers must satisfy among themselves; a part of `rules`."""

from collections.abc import Callable, Iterator
from functools import partial

from mindglm.recipe.models import ArGeneratorConfig, DiTConfig, GlyphConfig, TextConfig, VAEConfig, VisionConfig

Violations = Iterator[tuple[str, object, str]]
"""(key below the section, the value given, what is expected and why)"""

PATCH_SIZE, DIT_PATCH_SIZE, VAE_LEVELS, RGB = 16, 2, 4, 3
"""A large code covers 32 pixels, a DiT token 16, a latent 8: the pipeline and the public classes rest on it."""


def multiple(given: int, name: str, of: int) -> str:
    """What is expected where `given` does not divide by `of`, the value of `name`."""
    near = max(of, round(given / of) * of) if of > 0 else given
    return f"a multiple of {name} ({of}), for instance {near}"


def _hidden_by_heads(text: TextConfig) -> Violations:
    hidden, heads = text.hidden_size, text.num_attention_heads
    if min(hidden, heads) >= 1 and hidden % heads:
        yield "hidden_size", hidden, multiple(hidden, "num_attention_heads", heads)


def _heads_by_kv_heads(text: TextConfig) -> Violations:
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    if min(heads, kv_heads) >= 1 and heads % kv_heads:
        yield "num_attention_heads", heads, multiple(heads, "num_key_value_heads", kv_heads)


def _rotary_share(text: TextConfig) -> Violations:
    if not 0 < text.partial_rotary_factor <= 1:
        yield "partial_rotary_factor", text.partial_rotary_factor, "more than 0 and at most 1"


def _rotary_dims(text: TextConfig) -> int:
    """How many dimensions of a head rotate; 0 where another rule speaks of what they rest on."""
    heads, share = text.num_attention_heads, text.partial_rotary_factor
    return text.rotary_dim if heads >= 1 and text.hidden_size % heads == 0 and 0 < share <= 1 else 0


def _rotary_pairs(text: TextConfig) -> Violations:
    dims = _rotary_dims(text)
    if dims % 2:
        expected = f"an even share of head_dim {text.head_dim}, not {dims} dims"
        yield "partial_rotary_factor", text.partial_rotary_factor, expected


def _rotary_sections(text: TextConfig) -> Violations:
    dims, sections = _rotary_dims(text), text.mrope_section
    if dims and dims % 2 == 0 and min(sections) >= 0 and sum(sections) != dims // 2:
        share = text.partial_rotary_factor
        yield "mrope_section", f"{list(sections)} with sum {sum(sections)}", (
            f"the sum {dims // 2}: half of head_dim {text.head_dim} * partial_rotary_factor {share}")


def _text_vocabulary(text: TextConfig) -> Violations:
    words, image = text.vocab_size, text.vision_vocab_size
    if words <= image:
        yield "vocab_size", words, f"more than vision_vocab_size ({image}): the text ids follow the image ids"


def _vision_heads(vision: VisionConfig) -> Violations:
    if vision.num_heads > 0 and vision.hidden_size % vision.num_heads:
        yield "hidden_size", vision.hidden_size, multiple(vision.hidden_size, "num_heads", vision.num_heads)


def _vision_patch(vision: VisionConfig) -> Violations:
    if vision.patch_size != PATCH_SIZE:
        yield "patch_size", vision.patch_size, f"{PATCH_SIZE}: the processor and the pipeline rest on it"


def _vision_image(vision: VisionConfig) -> Violations:
    if vision.image_size % PATCH_SIZE:
        yield "image_size", vision.image_size, multiple(vision.image_size, "patch_size", PATCH_SIZE)


def _rgb(name: str, config: VisionConfig | VAEConfig) -> Violations:
    if getattr(config, name) != RGB:
        yield name, getattr(config, name), f"{RGB} (red, green, blue)"


def _ar_tower_to_vq(config: ArGeneratorConfig) -> Violations:
    given, tower = config.vq_config.latent_channels, config.vision_config.hidden_size
    if given != tower:
        yield "vq_config.latent_channels", given, f"vision_config.hidden_size ({tower}), whose features it takes"


def _ar_image_mark(name: str, config: ArGeneratorConfig) -> Violations:
    what = "an id the head can emit and no code: vq_config.num_embeddings <= id < vision_vocab_size"
    yield from _token_id(config, name, config.vq_config.num_embeddings, config.text_config.vision_vocab_size, what)


def _ar_text_id(name: str, config: ArGeneratorConfig) -> Violations:
    what = "a text id: vision_vocab_size <= id < vocab_size"
    yield from _token_id(config, name, config.text_config.vision_vocab_size, config.text_config.vocab_size, what)


def _token_id(config: ArGeneratorConfig, name: str, low: int, high: int, what: str) -> Violations:
    if not low <= getattr(config, name) < high:
        yield name, getattr(config, name), f"{low} to {high - 1}, {what}"


def _ar_marks_differ(config: ArGeneratorConfig) -> Violations:
    if config.image_start_token_id == config.image_end_token_id:
        yield "image_end_token_id", config.image_end_token_id, "an id other than image_start_token_id"


def _dit_head(config: DiTConfig) -> Violations:
    width = config.attention_head_dim
    if width % 4:
        yield "attention_head_dim", width, "a multiple of 4: rows and columns rotate half of it each, in pairs"


def _dit_cosines(name: str, config: DiTConfig) -> Violations:
    if getattr(config, name) % 2:
        yield name, getattr(config, name), "an even number: half cosines, half sines"


def _dit_patch(config: DiTConfig) -> Violations:
    if config.patch_size != DIT_PATCH_SIZE:
        yield "patch_size", config.patch_size, f"{DIT_PATCH_SIZE}: a prior code covers 2 x 2 tokens"


def _dit_channels(config: DiTConfig) -> Violations:
    if config.in_channels != config.out_channels:
        yield "out_channels", config.out_channels, f"in_channels ({config.in_channels}): velocities are latents"


def _vae_levels(config: VAEConfig) -> Violations:
    levels = len(config.block_out_channels)
    if levels != VAE_LEVELS:
        yield "block_out_channels", f"{levels} levels", f"{VAE_LEVELS}: latents are 1/8 of the pixels a side"


def _vae_groups(config) -> Violations:
    """config: a rules.Part of VAEConfig."""
    groups = config.norm_num_groups
    for i, channels in config.elements("block_out_channels").items():
        if channels > 0 and groups > 0 and channels % groups:
            yield f"block_out_channels[{i}]", channels, multiple(channels, "norm_num_groups", groups)


def _vae_statistics(name: str, config: VAEConfig) -> Violations:
    count = len(getattr(config, name))
    if count != config.latent_channels:
        yield name, f"{count} numbers", f"one for each of the latent_channels ({config.latent_channels})"


def _glyph_vocabulary(config: GlyphConfig) -> Violations:
    if config.vocab_size < 259:
        yield "vocab_size", config.vocab_size, "at least 259: pad, end, unknown and 256 bytes"


def _glyph_buckets(config: GlyphConfig) -> Violations:
    buckets = config.relative_attention_num_buckets
    if buckets % 4:
        yield "relative_attention_num_buckets", buckets, "a multiple of 4: two directions, half exact, half logarithmic"


def _glyph_distance(config: GlyphConfig) -> Violations:
    buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if buckets % 4 == 0 and distance <= buckets // 4:
        yield "relative_attention_max_distance", distance, f"more than the {buckets // 4} exact buckets of a direction"


STRUCTURE_RULES: dict[type, tuple[Callable[..., Violations], ...]] = {
    TextConfig: (_hidden_by_heads, _heads_by_kv_heads, _rotary_share, _rotary_pairs, _rotary_sections,
                 _text_vocabulary),
    VisionConfig: (_vision_heads, _vision_patch, _vision_image, partial(_rgb, "in_channels")),
    ArGeneratorConfig: (_ar_tower_to_vq, partial(_ar_image_mark, "image_start_token_id"),
                        partial(_ar_image_mark, "image_end_token_id"),
                        partial(_ar_text_id, "image_token_id"), partial(_ar_text_id, "text_pad_token_id"),
                        _ar_marks_differ),
    DiTConfig: (_dit_head, partial(_dit_cosines, "time_embed_dim"), partial(_dit_cosines, "condition_dim"), _dit_patch,
                _dit_channels),
    VAEConfig: (_vae_levels, _vae_groups, partial(_rgb, "in_channels"), partial(_rgb, "out_channels"),
                partial(_vae_statistics, "latents_mean"), partial(_vae_statistics, "latents_std")),
    GlyphConfig: (_glyph_vocabulary, _glyph_buckets, _glyph_distance),
}
