"""Wrong forms of the model, one for each way in which it is easily got wrong (numbers of section 6 of the reference).

Each puts the wrong form in place through pytest's `monkeypatch`; test_gotchas.py asserts that the precision card's
checks then name the tensor where it departs.
"""

import builtins
import dataclasses
import math

import numpy as np
from mindspore import Tensor, mint

from mindglm import ops
from mindglm.evaluate.precision import ar_families, picture_families, run_families
from mindglm.generate import flow_sampler, sampling
from mindglm.models.ar_generator import model as ar
from mindglm.models.ar_generator import positions, processor, vision
from mindglm.models.dit_decoder import model as dit
from mindglm.models.dit_decoder import scheduler
from mindglm.models.glyph_encoder import model as glyph
from mindglm.models.glyph_encoder import text
from mindglm.models.vae.model import VAE
from tests.parity.subjects import subject


def interleaved(x, cos, sin):
    """Rotation of neighbouring pairs, as GLM-4 does it."""
    rotary = cos.shape[-1]
    pair = np.arange(rotary) // 2
    swap = np.zeros((rotary, rotary), np.float32)
    swap[2 * np.arange(rotary // 2) + 1, 2 * np.arange(rotary // 2)] = -1
    swap[2 * np.arange(rotary // 2), 2 * np.arange(rotary // 2) + 1] = 1
    head = x[..., :rotary]
    cos, sin = (Tensor(t.asnumpy()[..., pair]) for t in (cos, sin))
    turned = head * cos + mint.matmul(head, Tensor(swap)) * sin
    return turned if rotary == x.shape[-1] else ops.concat((turned, x[..., rotary:]), -1)


# ---- prompts, positions, codes ----

def time_not_minus_one(patch):
    patch.setattr(flow_sampler, "model_time", lambda t: t)


def shifted_time(patch):
    patch.setattr(flow_sampler, "model_time", lambda t: 1000 * subject().scheduler.sigma(t, 24))


def training_time_not_minus_one(patch):
    patch.setattr(run_families, "model_time", lambda t: t)


def exponential_shift(patch):
    def sigma(self, t, image_tokens):
        mu, share = np.float32(math.exp(self.mu(image_tokens))), 1 / self._share(t)
        return mu / (mu + (share - np.float32(1)))

    patch.setattr(scheduler.Scheduler, "sigma", sigma)


def top_k_unset(patch):
    right = sampling.filter_logits
    patch.setattr(ar_families, "filter_logits", lambda z, c: right(z, dataclasses.replace(c, top_k=0)))


def top_p_before_top_k(patch):
    right = sampling.filter_logits

    def wrong(z, config):
        kept = right(z, dataclasses.replace(config, top_k=0))
        return right(kept, dataclasses.replace(config, temperature=1.0, top_p=1.0))

    patch.setattr(ar_families, "filter_logits", wrong)


def crossing_token_dropped(patch):
    right = sampling.filter_logits

    def wrong(z, config):
        kept = right(z, config)
        if config.top_p < 1 and np.isfinite(kept[4]).sum() > 1:
            lowest = np.where(np.isfinite(kept), kept, np.inf).argmin(-1)
            kept[4, lowest[4]] = -np.inf
        return kept

    patch.setattr(ar_families, "filter_logits", wrong)


def large_grid_first(patch):
    right = positions.target_positions
    patch.setattr(positions, "target_positions", lambda start, grids: right(start, grids[::-1]))


def interleaved_rotation(patch):
    patch.setattr(ops, "rotate_half", interleaved)


def interleaved_sections(patch):
    """Axis of frequency j is j mod 3, as in newer vision-language models."""
    rotary, config = subject().ar.model.language_model.rotary, subject().ar_config.text_config
    dims = config.rotary_dim
    frequency = 1.0 / np.float32(config.rope_theta) ** (np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims))
    axis = np.arange(dims // 2) % 3
    for a, name in enumerate(("time", "row", "column")):
        table = np.where(axis == a, frequency, 0).astype(np.float32).reshape(1, 1, 1, dims // 2)
        patch.setattr(rotary, name, Tensor(table))


def jump_by_area(patch):
    def area(*values):
        return values[0] * values[1] if len(values) == 2 else builtins.max(*values)

    patch.setattr(positions, "max", area, raising=False)


def time_moves_inside_an_image(patch):
    right = positions.grid_positions

    def wrong(start, rows, columns):
        at = right(start, rows, columns).copy()
        at[0] = at[1]
        return at

    patch.setattr(positions, "grid_positions", wrong)


def decode_off_by_one(patch):
    right = positions.decode_positions
    patch.setattr(positions, "decode_positions", lambda *a: np.roll(right(*a), 1, -1))


def padding_counted(patch):
    right = positions.prefill_positions
    patch.setattr(positions, "prefill_positions", lambda ids, valid=None, *rest: right(ids, None, *rest))


def grids_located_with_padding(patch):
    """The padding id is the image end id: looked for on padded ids, padding passes for images."""
    right = positions.prefill_positions
    patch.setattr(positions, "prefill_positions",
                  lambda ids, valid, *rest: right(ids, np.ones_like(valid), *rest))


def short_tables_end_in_zeros(patch):
    right = np.pad
    patch.setattr(positions.np, "pad", lambda a, width, mode="constant", **rest: right(a, width))


# ---- the decoder ----

def norms_by_their_names(patch):
    """`post_attention_layernorm` taken for the norm after attention."""
    def construct(self, x, cos, sin, mask=None, past=None):
        attended, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_mlp_layernorm(self.mlp(self.post_self_attn_layernorm(x))), present

    patch.setattr(ar.Layer, "construct", construct)


def two_norms(patch):
    def construct(self, x, cos, sin, mask=None, past=None):
        attended, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present

    patch.setattr(ar.Layer, "construct", construct)


def up_before_gate(patch):
    right = ops.swiglu

    def wrong(gate_up):
        gate, up = mint.split(gate_up, gate_up.shape[-1] // 2, -1)
        return right(ops.concat((up, gate), -1))

    patch.setattr(ops, "swiglu", wrong)


def keys_without_bias(patch):
    own, right = subject().ar.model.language_model.layers[0].self_attn.k_proj, ar.Linear.construct
    patch.setattr(ar.Linear, "construct",
                  lambda self, x: ops.linear(x, self.weight) if self is own else right(self, x))


def gelu_in_the_decoder(patch):
    def wrong(gate_up):
        gate, up = mint.split(gate_up, gate_up.shape[-1] // 2, -1)
        return ops.gelu(gate) * up

    patch.setattr(ops, "swiglu", wrong)


# ---- tower and VQ ----

def tanh_gelu_in_the_tower(patch):
    patch.setattr(ops, "gelu", ops.gelu_tanh)


def aligned_corners(patch):
    def along(self, count):
        at = np.linspace(0, self.side - 1, count, dtype=np.float32)
        low = np.floor(at)
        high = np.minimum(low + 1, self.side - 1)
        return Tensor(low.astype(np.int32)), Tensor(high.astype(np.int32)), Tensor(at - low)

    patch.setattr(vision.PositionTable, "along", along)


def raw_codebook(patch):
    patch.setattr(vision.Quantizer, "unit_codebook", lambda self: self.embedding.weight)


def raw_features(patch):
    patch.setattr(vision.VQModel, "construct", lambda self, features: self.quant_conv(features))


# ---- processor ----

def no_halving(patch):
    right = processor.smart_resize
    for module in (processor, ar_families):
        patch.setattr(module, "smart_resize", lambda h, w, *rest, **kw: right(2 * h, 2 * w, *rest, **kw))


def rounding_half_up(patch):
    patch.setattr(processor, "round", lambda x: math.floor(x + 0.5), raising=False)


def class_defaults_of_the_processor(patch):
    own = subject().processor
    pixels = dataclasses.replace(own.pixels, mean=(0.48145466, 0.4578275, 0.40821073),
                                 std=(0.26862954, 0.26130258, 0.27577711))
    patch.setitem(subject().__dict__, "processor", dataclasses.replace(own, pixels=pixels))


def preview_rounded(patch):
    patch.setattr(processor, "int", round, raising=False)


# ---- DiT ----

def halves_instead_of_alternating(patch):
    """Six vectors of the image, then six of the text."""
    def construct(self, img, txt, temb):
        c = mint.split(self.linear(temb).reshape(temb.shape[0], 1, -1), img.shape[-1], -1)
        return (dit.modulate(img, c[0], c[1]), c[2], c[3], c[4], c[5],
                dit.modulate(txt, c[6], c[7]), c[8], c[9], c[10], c[11])

    patch.setattr(dit.Modulation, "construct", construct)


def shift_before_scale_at_the_end(patch):
    def construct(self, img, temb):
        shift, scale = mint.split(self.linear(temb).reshape(temb.shape[0], 1, -1), img.shape[-1], -1)
        return dit.modulate(img, shift, scale)

    patch.setattr(dit.OutputNorm, "construct", construct)


def silu_before_the_modulation(patch):
    right = dit.Modulation.construct
    patch.setattr(dit.Modulation, "construct", lambda self, img, txt, temb: right(self, img, txt, ops.silu(temb)))


def size_before_crop(patch):
    right = dit.TimeConditionEmbed.construct
    patch.setattr(dit.TimeConditionEmbed, "construct", lambda self, t, size, crop: right(self, t, crop, size))


def sines_first(patch):
    right = dit.sinusoids

    def wrong(values, table):
        cosines, sines = mint.split(right(values, table), table.shape[-1], -1)
        return ops.concat((sines, cosines), -1)

    for module in (dit, picture_families):
        patch.setattr(module, "sinusoids", wrong)


def text_is_turned(patch):
    right = dit.rotary_tables

    def wrong(rows, columns, glyphs, head_dim):
        tables = right(rows, columns, glyphs, head_dim)
        return tuple(ops.concat((t[:, :, glyphs:][:, :, :glyphs], t[:, :, glyphs:]), 2) for t in tables)

    patch.setattr(dit, "rotary_tables", wrong)


def queries_and_keys_not_normed(patch):
    right = ops.layer_norm

    def wrong(x, w, b, eps):
        return x if x.ndim == 4 else right(x, w, b, eps)

    patch.setattr(ops, "layer_norm", wrong)


def rotary_rows_twice_then_columns(patch):
    right = dit.rotary_tables

    def wrong(rows, columns, glyphs, head_dim):
        order = np.arange(head_dim).reshape(2, 2, -1).transpose(1, 0, 2).reshape(-1)
        return tuple(Tensor(t.asnumpy()[..., order]) for t in right(rows, columns, glyphs, head_dim))

    for module in (dit, picture_families):
        patch.setattr(module, "rotary_tables", wrong)


def dropped_codes_give_zero(patch):
    own, right = subject().dit.prior_projector, dit.FeedForward.construct

    def construct(self, x):
        y = right(self, x)
        return y * (x.abs().sum(-1, keepdims=True) > 0).float() if self is own else y

    patch.setattr(dit.FeedForward, "construct", construct)


def patches_channels_last(patch):
    def construct(self, x):
        b, c, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)
        return self.proj(x.reshape(b, (h // p) * (w // p), c * p * p))

    patch.setattr(dit.ImageProjector, "construct", construct)


def output_channels_last(patch):
    def wrong(self, x, h, w):
        c, p = self.config.out_channels, self.config.patch_size
        return x.reshape(x.shape[0], h // p, w // p, p, p, c).permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], c, h, w)

    patch.setattr(dit.DiTDecoder, "_unpatchify", wrong)


def references_at_the_time_of_noise(patch):
    right = mint.zeros
    patch.setattr(dit.mint, "zeros", lambda shape, dtype=None: right(shape, dtype=dtype) + 999.0
                  if len(shape) == 1 else right(shape, dtype=dtype))


def samples_tiled(patch):
    """(a, b, a, b) instead of (a, a, b, b)."""
    patch.setattr(dit, "spread", lambda x, b: mint.tile(x, (b // x.shape[0],) + (1,) * (x.ndim - 1)))


def tanh_gelu_in_the_glyph_projector(patch):
    patch.setattr(subject().dit.glyph_projector.net[0], "activation", ops.gelu_tanh)


def erf_gelu_in_the_feed_forward(patch):
    patch.setattr(subject().dit.transformer_blocks[0].ff.net[0], "activation", ops.gelu)


def gelu_in_the_prior_projector(patch):
    patch.setattr(subject().dit.prior_projector.net[0], "activation", ops.gelu)


# ---- VAE ----

def scaling_factor(patch):
    patch.setattr(VAE, "encode", lambda self, x: self.moments(x)[0] * 0.18215)


def sampled_not_mode(patch):
    def moments(self, x):
        mean, logvar = mint.split(self.encoder(x), self.config.latent_channels, 1)
        return mean + mint.exp(0.5 * logvar) * 0.1, logvar

    patch.setattr(VAE, "moments", moments)


def symmetric_padding(patch):
    right = ops.pad_right_bottom
    patch.setattr(ops, "pad_right_bottom", lambda x: mint.flip(right(mint.flip(x, (2, 3))), (2, 3)))


def convolution_without_bias(patch):
    right = ops.conv2d
    patch.setattr(ops, "conv2d", lambda x, w, b, *rest: right(x, w, b * 0.0, *rest))


# ---- glyphs ----

def erf_gelu_in_the_glyph_encoder(patch):
    patch.setattr(ops, "gelu_tanh", ops.gelu)


def scaled_scores(patch):
    blocks = subject().glyph_encoder.encoder.block
    queries = [block.layer[0].SelfAttention.q for block in blocks]
    right, scale = glyph.Linear.construct, subject().glyph_encoder.config.d_kv ** -0.5

    def construct(self, x):
        y = right(self, x)
        return y * scale if any(self is q for q in queries) else y

    patch.setattr(glyph.Linear, "construct", construct)


def one_sided_buckets(patch):
    def wrong(length, num_buckets, max_distance):
        places = np.arange(length)
        past = np.clip(places[None] - places[:, None], -max_distance, 0)
        return Tensor(glyph.bucket_table(2 * num_buckets, max_distance)[past + max_distance])

    patch.setattr(glyph, "bucket_grid", wrong)


def no_parity_pad(patch):
    patch.setattr(text, "prompt_ids",
                  lambda prompt, limit: [text.byte_ids(s, limit) for s in text.glyph_strings(prompt) or [""]])


def strings_by_place(patch):
    patch.setattr(text, "_QUOTES", text._QUOTES[::-1])


def glyphs_padded_on_the_right(patch):
    def wrong(features):
        longest = max(len(rows) for rows in features)
        return np.stack([np.pad(rows, ((0, longest - len(rows)), (0, 0))) for rows in features])

    patch.setattr(text, "pad_left_batch", wrong)
