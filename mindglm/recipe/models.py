"""Model structures as data: what a recipe, the planner and the Cells share.

Field names are those of the public checkpoint's config.json files. No field of the structure has a default here, so
that a recipe or a checkpoint always states it; only constants of the architecture itself do.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextConfig:
    """The GLM-4 decoder of the AR generator (reference section 2.2)."""

    vocab_size: int
    """Ids the embedding knows: image ids first, then the shifted text vocabulary."""
    vision_vocab_size: int
    """Ids the head can emit: image codes, image start, image end, spare ids."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int]
    """How many rotary frequencies follow the temporal, the row and the column position."""
    partial_rotary_factor: float = 0.5
    """Share of each head's dimensions that rotates."""
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower that reads images for the VQ (reference section 2.3)."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    image_size: int
    """Pixels a side that the learned position table covers: (image_size / patch_size) ** 2 positions."""
    patch_size: int = 16
    in_channels: int = 3
    layer_norm_eps: float = 1e-6

    @property
    def table_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.patch_size**2


@dataclass(frozen=True)
class VQConfig:
    """The cosine vector quantiser on tower features (reference section 2.4)."""

    num_embeddings: int
    embed_dim: int
    latent_channels: int
    """Width of the features that enter: the tower's hidden size."""


@dataclass(frozen=True)
class ArGeneratorConfig:
    """The whole `vision_language_encoder` component."""

    text_config: TextConfig
    vision_config: VisionConfig
    vq_config: VQConfig
    image_start_token_id: int
    image_end_token_id: int
    image_token_id: int
    """Placeholder that source-image codes replace at prefill."""
    text_pad_token_id: int
    """<|endoftext|>: `text_config.pad_token_id` of the released json."""

    @property
    def num_codes(self) -> int:
        return self.vq_config.num_embeddings


@dataclass(frozen=True)
class DiTConfig:
    """The `transformer` component (reference section 2.6)."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    text_embed_dim: int
    """Width of the glyph encoder's features."""
    time_embed_dim: int
    condition_dim: int
    """Sinusoid width of each of the four numbers top, left, height, width."""
    prior_vq_quantizer_codebook_size: int
    patch_size: int = 2

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class VAEConfig:
    """The `vae` component (reference section 2.7)."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    in_channels: int = 3
    out_channels: int = 3
    sample_size: int = 1024

    @property
    def spatial_factor(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class GlyphConfig:
    """The `text_encoder` component: a ByT5 encoder (reference section 2.8)."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    vocab_size: int = 384
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


@dataclass(frozen=True)
class SchedulerConfig:
    """The `scheduler` component (reference section 2.9)."""

    num_train_timesteps: int = 1000
    base_shift: float = 0.25
    max_shift: float = 0.75
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
