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
    """Width of the residual stream."""
    intermediate_size: int
    """Width inside the gated MLP."""
    num_hidden_layers: int
    """Decoder layers."""
    num_attention_heads: int
    """Query heads; each is hidden_size / num_attention_heads wide."""
    num_key_value_heads: int
    """Key and value heads, each shared by num_attention_heads / num_key_value_heads query heads."""
    mrope_section: tuple[int, int, int]
    """How many rotary frequencies follow the temporal, the row and the column position."""
    partial_rotary_factor: float = 0.5
    """Share of each head's dimensions that rotates."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square before its root."""
    max_position_embeddings: int = 131072
    """Longest sequence, in tokens, that the positions are meant for."""

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
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads."""
    intermediate_size: int
    """Width inside the MLP."""
    image_size: int
    """Pixels a side that the learned position table covers: (image_size / patch_size) ** 2 positions."""
    patch_size: int = 16
    """Side of a patch in pixels of the half-size image."""
    in_channels: int = 3
    """Colours."""
    layer_norm_eps: float = 1e-6
    """Added to the variance."""

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
    """Codes in the codebook."""
    embed_dim: int
    """Width of a code."""
    latent_channels: int
    """Width of the features that enter: the tower's hidden size."""


@dataclass(frozen=True)
class ArGeneratorConfig:
    """The whole `vision_language_encoder` component."""

    text_config: TextConfig
    """The decoder that writes codes."""
    vision_config: VisionConfig
    """The tower that reads images."""
    vq_config: VQConfig
    """The codebook."""
    image_start_token_id: int
    """Stands before the codes of an image."""
    image_end_token_id: int
    """Stands after them and ends generation."""
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
    """Transformer blocks."""
    num_attention_heads: int
    """Heads; their number times attention_head_dim is the width of the residual stream."""
    attention_head_dim: int
    """Width of a head."""
    in_channels: int
    """Channels of a latent."""
    out_channels: int
    """Channels of a velocity: those of a latent."""
    text_embed_dim: int
    """Width of the glyph encoder's features."""
    time_embed_dim: int
    """Width of the embedding of time and size."""
    condition_dim: int
    """Sinusoid width of each of the four numbers top, left, height, width."""
    prior_vq_quantizer_codebook_size: int
    """Codes of the AR generator's codebook."""
    patch_size: int = 2
    """Side of a token in latent pixels."""

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class VAEConfig:
    """The `vae` component (reference section 2.7)."""

    block_out_channels: tuple[int, ...]
    """Channels of each level, from the picture down to the latent."""
    layers_per_block: int
    """Residual blocks a level of the encoder; the decoder has one more."""
    latent_channels: int
    """Channels of a latent."""
    norm_num_groups: int
    """Groups of every group norm."""
    latents_mean: tuple[float, ...]
    """Of each channel: subtracted from latents."""
    latents_std: tuple[float, ...]
    """Of each channel: latents are divided by it."""
    in_channels: int = 3
    """Colours read."""
    out_channels: int = 3
    """Colours drawn."""
    sample_size: int = 1024
    """Side in pixels of the pictures it was trained on; a note, nothing is computed from it."""

    @property
    def spatial_factor(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class GlyphConfig:
    """The `text_encoder` component: a ByT5 encoder (reference section 2.8)."""

    d_model: int
    """Width of the residual stream."""
    d_kv: int
    """Width of a head."""
    d_ff: int
    """Width inside the gated MLP."""
    num_heads: int
    """Attention heads."""
    num_layers: int
    """Encoder layers."""
    vocab_size: int = 384
    """Ids: pad, end, unknown, 256 bytes, and spare ones."""
    relative_attention_num_buckets: int = 32
    """Classes of distance that have a bias of their own."""
    relative_attention_max_distance: int = 128
    """Distance in bytes from which all share one class."""
    layer_norm_epsilon: float = 1e-6
    """Added to the mean square before its root."""


@dataclass(frozen=True)
class SchedulerConfig:
    """The `scheduler` component (reference section 2.9)."""

    num_train_timesteps: int = 1000
    """Integer times."""
    base_shift: float = 0.25
    """Constant part of the shift mu."""
    max_shift: float = 0.75
    """Part of mu that grows with the root of the sequence length."""
    base_image_seq_len: int = 256
    """Sequence length, in DiT tokens, at which that part is max_shift."""
    max_image_seq_len: int = 4096
    """Stands in the released file; the shift does not use it."""
