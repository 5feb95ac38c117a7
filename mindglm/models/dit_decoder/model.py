"""The DiT decoder: velocity of the latent, from the noisy latent, prior codes and glyph features (section 2.6).

Departures from a plain DiT: prior codes are embedded, projected and added to the image tokens; glyph features join as
tokens in front of the image tokens, without positions, and share every weight of a block except the modulation (one
linear map gives twelve vectors, six for the image and six for the text); queries and keys are layer-normalised without
affine; only image tokens are rotated, by row and column; time, crop and size enter through one vector `temb` that has
already passed a SiLU.

Reference images (image to image) are run through the same blocks once, alone, without glyphs and at time 0; every
block's rotated keys and its values of them are kept, and stand in front of those of a picture that is drawn.

Shapes: B samples, C latent channels, h w latent sides, p patch side, N = (h/p)(w/p) image tokens, T glyph tokens,
D model width, H heads, K head width, E width of temb; n samples with references, R reference tokens of a sample.
"""

import functools
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn
from mindspore.ops import constexpr

from mindglm import ops
from mindglm.recipe.models import DiTConfig

EPS = 1e-5
PERIOD = 10000.0

Cache = tuple[tuple[Tensor, Tensor], ...]
"""Of reference images, per block: keys after rotation (n, H, R, K) and values (n, H, R, K)."""


class Linear(nn.Cell):
    """x W^T + b; `weight` (out, in). `starts_silent`: fresh weights are zero."""

    def __init__(self, inputs: int, outputs: int, starts_silent: bool = False):
        super().__init__()
        self.weight = ops.param((outputs, inputs), "zeros" if starts_silent else ("normal", inputs**-0.5))
        self.bias = ops.param((outputs,))

    def construct(self, x):
        return ops.linear(x, self.weight, self.bias)


class Activated(nn.Cell):
    """A linear map named `proj`, then an activation: the first member of a feed-forward's `net`."""

    def __init__(self, inputs: int, outputs: int, activation):
        super().__init__()
        self.proj = Linear(inputs, outputs)
        self.activation = activation

    def construct(self, x):
        return self.activation(self.proj(x))


class FeedForward(nn.Cell):
    """Two linear maps around an activation; `net.1` is the reference's dropout, which holds nothing."""

    def __init__(self, inputs: int, inner: int, outputs: int, activation):
        super().__init__()
        self.net = nn.CellList([Activated(inputs, inner, activation), nn.Identity(), Linear(inner, outputs)])

    def construct(self, x):
        return self.net[2](self.net[0](x))


class Embedder(nn.Cell):
    """Two linear maps around a SiLU."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear_1 = Linear(inputs, width)
        self.linear_2 = Linear(width, width)

    def construct(self, x):
        return self.linear_2(ops.silu(self.linear_1(x)))


class TimeConditionEmbed(nn.Cell):
    """Time, crop and target size -> temb (B, E)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.time_frequencies = Tensor(frequencies(config.time_embed_dim))
        self.condition_frequencies = Tensor(frequencies(config.condition_dim))
        self.timestep_embedder = Embedder(config.time_embed_dim, config.time_embed_dim)
        self.condition_embedder = Embedder(4 * config.condition_dim, config.time_embed_dim)

    def construct(self, timestep_B, target_size_B2, crop_B2):
        dtype = self.timestep_embedder.linear_1.weight.dtype  # waves are made in float32, then follow the weights
        time_BE = ops.cast(sinusoids(timestep_B, self.time_frequencies), dtype)
        numbers_B4 = ops.concat((crop_B2, target_size_B2), 1)
        condition = sinusoids(numbers_B4, self.condition_frequencies).reshape(numbers_B4.shape[0], -1)
        return ops.silu(self.timestep_embedder(time_BE) + self.condition_embedder(ops.cast(condition, dtype)))


class ImageProjector(nn.Cell):
    """Patches of the latent, each flattened as (C, y, x), raster order: (B, C, h, w) -> (B, N, D)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.patch = config.patch_size
        self.proj = Linear(config.in_channels * config.patch_size**2, config.hidden_size)

    def construct(self, x_BChw):
        b, c, h, w = x_BChw.shape
        p = self.patch
        x = x_BChw.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        return self.proj(x.reshape(b, (h // p) * (w // p), c * p * p))


class Modulation(nn.Cell):
    """`norm1` of a block: only its linear map has parameters."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        # Fresh gates are zero: every block starts as the identity, which trains faster and more steadily.
        self.linear = Linear(config.time_embed_dim, 12 * config.hidden_size, starts_silent=True)

    def construct(self, img_BND, txt_BTD, temb_BE):
        """Modulated image tokens and its gate_msa, shift, scale, gate of the feed-forward; then the same of the text.

        Vectors are (B, 1, D). The map's order alternates image and text: shift, shift, scale, scale, gate, gate.
        """
        chunks = mint.split(self.linear(temb_BE).reshape(temb_BE.shape[0], 1, -1), img_BND.shape[-1], -1)
        shift_i, shift_t, scale_i, scale_t, gate_i, gate_t = chunks[:6]
        shift_mi, shift_mt, scale_mi, scale_mt, gate_mi, gate_mt = chunks[6:]
        return (modulate(img_BND, shift_i, scale_i), gate_i, shift_mi, scale_mi, gate_mi,
                modulate(txt_BTD, shift_t, scale_t), gate_t, shift_mt, scale_mt, gate_mt)


class Attention(nn.Cell):
    """Joint attention over [text, image] with normalised queries and keys."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.attention_head_dim
        width = config.hidden_size
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.CellList([Linear(width, width)])

    def construct(self, x_BSD, cos, sin, mask, references=None):
        """Tokens after attention, and their own (k, v). references: this block's (k, v), which is put in front."""
        b, s, d = x_BSD.shape
        q = ops.rotate_half(ops.layer_norm(self._heads(self.to_q(x_BSD)), None, None, EPS), cos, sin)
        k = ops.rotate_half(ops.layer_norm(self._heads(self.to_k(x_BSD)), None, None, EPS), cos, sin)
        v = self._heads(self.to_v(x_BSD))
        keys, values = k, v
        if references is not None:
            keys = ops.concat((spread(references[0], b), k), 2)
            values = ops.concat((spread(references[1], b), v), 2)
        y_BHSK = ops.attention(q, keys, values, mask=mask)
        return self.to_out[0](y_BHSK.permute(0, 2, 1, 3).reshape(b, s, d)), (k, v)

    def _heads(self, x_BSD):
        b, s, _ = x_BSD.shape
        return x_BSD.reshape(b, s, self.heads, self.head_dim).permute(0, 2, 1, 3)


class Block(nn.Cell):
    """One transformer block on two streams that share its weights."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.norm1 = Modulation(config)
        self.attn1 = Attention(config)
        self.ff = FeedForward(config.hidden_size, 4 * config.hidden_size, config.hidden_size, ops.gelu_tanh)

    def construct(self, img_BND, txt_BTD, temb_BE, cos, sin, mask, references=None):
        """Image and text tokens in; image and text tokens and their (k, v) out.

        cos, sin (1, 1, T + N, K): 1 and 0 on the text. references: this block's (k, v) of the reference images.
        """
        (x_img, gate_i, shift_mi, scale_mi, gate_mi,
         x_txt, gate_t, shift_mt, scale_mt, gate_mt) = self.norm1(img_BND, txt_BTD, temb_BE)
        text = txt_BTD.shape[1]
        y, present = self.attn1(join(x_txt, x_img), cos, sin, mask, references)
        y_img = y
        if text:
            y_txt, y_img = mint.split(y, (text, img_BND.shape[1]), 1)
            txt_BTD = ops.scale_shift(y_txt, gate_t, txt_BTD)
            txt_BTD = ops.scale_shift(self.ff(modulate(txt_BTD, shift_mt, scale_mt)), gate_mt, txt_BTD)
        img_BND = ops.scale_shift(y_img, gate_i, img_BND)
        img_BND = ops.scale_shift(self.ff(modulate(img_BND, shift_mi, scale_mi)), gate_mi, img_BND)
        return img_BND, txt_BTD, present


class OutputNorm(nn.Cell):
    """Last modulation; here the scale comes before the shift."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.linear = Linear(config.time_embed_dim, 2 * config.hidden_size, starts_silent=True)

    def construct(self, img_BND, temb_BE):
        vectors = self.linear(temb_BE).reshape(temb_BE.shape[0], 1, -1)
        scale, shift = mint.split(vectors, img_BND.shape[-1], -1)
        return modulate(img_BND, shift, scale)


class Codes(nn.Cell):
    """Embedding of prior codes; `weight` (codes, D)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        shape = (config.prior_vq_quantizer_codebook_size, config.hidden_size)
        self.weight = ops.param(shape, ("normal", 1.0))

    def construct(self, ids_BN, drop_BN):
        """A dropped token's embedding is zero; the projector behind it still gives its constant."""
        rows = ops.embedding(self.weight, ids_BN)
        return ops.where(drop_BN.reshape(drop_BN.shape + (1,)), Tensor(0.0, rows.dtype), rows)


class DiTDecoder(nn.Cell):
    """Noisy latents and their conditions -> velocity. Parameters carry the released `transformer` names."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.image_projector = ImageProjector(config)
        self.glyph_projector = FeedForward(config.text_embed_dim, d, d, ops.gelu)
        self.prior_token_embedding = Codes(config)
        self.prior_projector = FeedForward(d, d, d, ops.silu)
        self.time_condition_embed = TimeConditionEmbed(config)
        self.transformer_blocks = nn.CellList([Block(config) for _ in range(config.num_layers)])
        self.norm_out = OutputNorm(config)
        self.proj_out = Linear(d, config.out_channels * config.patch_size**2, starts_silent=True)

    def construct(self, latents_BCHW, glyph_BTD, prior_ids_BN, prior_drop_BN, timestep_B, target_size_B2, crop_B2,
                  text_mask_BT=None, references=None, reference_mask_nR=None):
        """Velocity (B, C, h, w).

        Args:
            latents_BCHW: noisy latents (B, C, h, w) float32, sides multiples of the patch size.
            glyph_BTD: glyph features (B, T, text_embed_dim); T may be 0.
            prior_ids_BN: code of every image token, raster order, int32: the AR grid repeated twice each way.
            prior_drop_BN: bool, True where the code is withheld.
            timestep_B: float32 in 0..999 (scheduler.model_time).
            target_size_B2, crop_B2: (height, width) and (top, left) in pixels, float32.
            text_mask_BT: bool, True = a real glyph token, False = padding that nothing attends to. None: all real.
            references: Cache of n samples' reference images (`write`, references.py); sample i of it serves the
                B / n pictures from i * B / n on. None: there are none, or this is the pass without conditions.
            reference_mask_nR: bool (n, R), False = padding of a sample with fewer reference tokens. None: all real.
        """
        mask = self._key_mask(prior_ids_BN, glyph_BTD.shape[1], text_mask_BT, references, reference_mask_nR)
        return self._run(latents_BCHW, glyph_BTD, prior_ids_BN, prior_drop_BN, timestep_B, target_size_B2, crop_B2,
                         mask, references)[0]

    def write(self, latents_BCHW, prior_ids_BN, target_size_B2) -> tuple[Tensor, Cache]:
        """Read reference images of one size: velocity (B, C, h, w), which nothing needs, and their Cache (n = B).

        Each sees only itself: no glyphs, time 0, codes kept, crop (0, 0), positions from (0, 0).

        Args:
            latents_BCHW: the images' own latents. prior_ids_BN: their codes, as in `construct`.
            target_size_B2: the size in pixels of the images that were encoded.
        """
        b = latents_BCHW.shape[0]
        kept = mint.zeros(prior_ids_BN.shape, dtype=ms.bool_)
        time, crop = mint.zeros((b,), dtype=ms.float32), mint.zeros((b, 2), dtype=ms.float32)
        return self._run(latents_BCHW, None, prior_ids_BN, kept, time, target_size_B2, crop, None, None)

    def _key_mask(self, prior_ids_BN, t, text_mask_BT, references, reference_mask_nR):
        """Bool (B, 1, 1, R + T + N) over [references, text, image]; None when every key is real."""
        if text_mask_BT is None and reference_mask_nR is None:
            return None
        b, n = prior_ids_BN.shape
        text = mint.ones((b, t), dtype=ms.bool_) if text_mask_BT is None and t else text_mask_BT
        parts = (mint.ones((b, n), dtype=ms.bool_),)
        if t:
            parts = (text,) + parts
        if references is not None:
            samples, length = references[0][0].shape[0], references[0][0].shape[2]
            real = mint.ones((samples, length), dtype=ms.bool_) if reference_mask_nR is None else reference_mask_nR
            parts = (spread(real, b),) + parts
        return ops.concat(parts, 1).reshape(b, 1, 1, -1)

    def _run(self, latents_BCHW, glyph_BTD, prior_ids_BN, prior_drop_BN, timestep_B, target_size_B2, crop_B2, mask,
             references):
        """Velocity and every block's (k, v). glyph_BTD: None or T = 0 for no text."""
        h, w = latents_BCHW.shape[2:]
        p, t = self.config.patch_size, 0 if glyph_BTD is None else glyph_BTD.shape[1]
        dtype = self.proj_out.weight.dtype
        img = self.image_projector(ops.cast(latents_BCHW, dtype))
        img = img + self.prior_projector(self.prior_token_embedding(prior_ids_BN, prior_drop_BN))
        txt = self.glyph_projector(ops.cast(glyph_BTD, dtype)) if t else img[:, :0]
        temb = self.time_condition_embed(timestep_B, target_size_B2, crop_B2)
        cos, sin = rotary_tables(h // p, w // p, t, self.config.attention_head_dim)
        presents = ()
        for i, block in enumerate(self.transformer_blocks):
            img, txt, present = block(img, txt, temb, cos, sin, mask, None if references is None else references[i])
            presents = presents + (present,)
        return self._unpatchify(self.proj_out(self.norm_out(img, temb)), h, w), presents

    def _unpatchify(self, x, h, w):
        """Token vectors (C, y, x) -> (B, C, h, w)."""
        c, p = self.config.out_channels, self.config.patch_size
        x = x.reshape(x.shape[0], h // p, w // p, c, p, p).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(x.shape[0], c, h, w)


def modulate(x_BSD, shift_B1D, scale_B1D):
    """LayerNorm without affine, then scaled and shifted per sample."""
    if x_BSD.shape[1] == 0:
        return x_BSD
    return ops.scale_shift(ops.layer_norm(x_BSD, None, None, EPS), 1.0 + scale_B1D, shift_B1D)


def spread(x, b: int):
    """(n, ...) -> (b, ...), b a multiple of n: every sample b / n times, copies beside each other."""
    n = x.shape[0]
    if n == b:
        return x
    rest = x.shape[1:]
    return mint.broadcast_to(x.reshape((n, 1) + rest), (n, b // n) + rest).reshape((b,) + rest)


def join(txt_BTD, img_BND):
    """Text first, image second."""
    return ops.concat((txt_BTD, img_BND), 1) if txt_BTD.shape[1] else img_BND


def sinusoids(values, table_F):
    """Numbers (..., ) -> (..., 2 F): cosines first."""
    angles = values.reshape(values.shape + (1,)) * table_F
    return ops.concat((mint.cos(angles), mint.sin(angles)), -1)


def frequencies(width: int) -> np.ndarray:
    """width / 2 falling frequencies 10000^(-i / (width / 2)), float32.

    The exponents are rounded to float32 as the reference does, the power is not: times up to 999 multiply any error.
    """
    half = width // 2
    exponents = np.float32(-math.log(PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


@constexpr
@functools.lru_cache(maxsize=64)
def rotary_tables(rows: int, columns: int, text: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin (1, 1, text + rows * columns, head_dim) float32; text tokens are not turned (1 and 0).

    A quarter of the angles follows the row, the next quarter the column, and both are repeated: half-split pairs.
    Computed once for a grid, in NumPy: a constant of the compiled graph.
    """
    quarter = head_dim // 4
    inverse = 1.0 / PERIOD ** (np.arange(quarter, dtype=np.float32) * 2 / np.float32(head_dim // 2))
    row, column = np.divmod(np.arange(rows * columns, dtype=np.float32), np.float32(columns))
    half = np.concatenate([row[:, None] * inverse, column[:, None] * inverse], 1).astype(np.float32)
    angles = np.zeros((1, 1, text + rows * columns, head_dim), np.float32)
    angles[0, 0, text:] = np.concatenate([half, half], 1)
    return Tensor(np.cos(angles)), Tensor(np.sin(angles))
