"""The DiT decoder cut into pipeline stages. Its units, in order: inputs (projectors and conditioning), every block,
output (norm and projection).

A stage owns only its units, under their released names. Between stages travel the image tokens, the glyph tokens (as
long as a later block reads them), the vector temb, and the tokens and temb of every reference image: a block makes
the keys and values of the references itself, right before it needs them, so the cache never leaves its block and
gradients pass through it.

Shape letters as in model.py.
"""

from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn

from mindglm import ops
from mindglm.models.dit_decoder import model as whole
from mindglm.models.dit_decoder.flops import unit_flops, unit_names  # noqa: F401  (read from here by those who cut)
from mindglm.models.dit_decoder.references import join_images, stack_samples
from mindglm.ops import tape
from mindglm.recipe.models import DiTConfig


class Reference(NamedTuple):
    """One reference image of one sample."""

    sample: int
    """Whose it is."""
    latents_1Chw: np.ndarray
    prior_ids_1N: np.ndarray
    target_size_12: np.ndarray


class Inputs(NamedTuple):
    """What DiTDecoder.construct takes, as NumPy arrays, and the reference images in place of their cache."""

    latents_BCHW: np.ndarray
    glyph_BTD: np.ndarray
    prior_ids_BN: np.ndarray
    prior_drop_BN: np.ndarray
    timestep_B: np.ndarray
    target_size_B2: np.ndarray
    crop_B2: np.ndarray
    text_mask_BT: np.ndarray | None = None
    references: tuple[Reference, ...] = ()
    """Ordered by sample; none, or at least one of every sample 0..n - 1 with n a divisor of B."""


class Named(nn.Cell):
    """A level of the released names, with members set from outside."""


class Stage(nn.Cell):
    """Units start..stop - 1 under their released names."""

    def __init__(self, config: DiTConfig, start: int, stop: int, recompute=frozenset()):
        """recompute: numbers of the units whose activations are computed again in the backward pass (blocks only)."""
        super().__init__()
        units, d = len(unit_names(config)), config.hidden_size
        assert 0 <= start < stop <= units, (start, stop, units)
        self.config, self.first, self.last = config, start == 0, stop == units
        if self.first:
            self.image_projector = whole.ImageProjector(config)
            self.glyph_projector = whole.FeedForward(config.text_embed_dim, d, d, ops.gelu)
            self.prior_token_embedding = whole.Codes(config)
            self.prior_projector = whole.FeedForward(d, d, d, ops.silu)
            self.time_condition_embed = whole.TimeConditionEmbed(config)
        self.numbers = range(max(start, 1) - 1, min(stop, units - 1) - 1)
        blocks = Named()  # filled before it is a member: a Cell names parameters at the moment it gets them
        for i in self.numbers:
            setattr(blocks, str(i), whole.Block(config))
        self.transformer_blocks = blocks
        self.recomputed = frozenset(i for i in self.numbers if i + 1 in recompute)
        self.blocks_left = start < units - 1  # whether this stage or a later one still has a block
        self.blocks_after = stop < units - 1
        if self.last:
            self.norm_out = whole.OutputNorm(config)
            self.proj_out = whole.Linear(d, config.out_channels * config.patch_size**2, starts_silent=True)

    @property
    def dtype(self):
        """Of the weights, and so of all that travels."""
        return next(iter(self.get_parameters())).dtype

    def received(self, inputs: Inputs) -> tuple:
        """((shape, dtype), ...) of what comes from the stage before; () on the first.

        Image tokens, temb; while blocks are left: glyph tokens if there are any, then tokens and temb per reference.
        """
        if self.first:
            return ()
        d, e, dtype = self.config.hidden_size, self.config.time_embed_dim, self.dtype
        b, text = inputs.latents_BCHW.shape[0], inputs.glyph_BTD.shape[1]
        shapes = [(b, self._tokens(inputs.latents_BCHW), d), (b, e)]
        if self.blocks_left:
            shapes = shapes + ([(b, text, d)] if text else [])
            for reference in inputs.references:
                shapes = shapes + [(1, self._tokens(reference.latents_1Chw), d), (1, e)]
        return tuple((shape, dtype) for shape in shapes)

    def construct(self, carried: tuple, inputs: Inputs) -> tuple:
        """What the next stage receives, or (velocity (B, C, h, w),) on the last stage."""
        carried = self._begin(inputs) if self.first else carried
        text, (h, w) = inputs.glyph_BTD.shape[1], inputs.latents_BCHW.shape[2:]
        p, width = self.config.patch_size, self.config.attention_head_dim
        tables = whole.rotary_tables(h // p, w // p, text, width)
        reference_tables = [whole.rotary_tables(*(side // p for side in r.latents_1Chw.shape[2:]), 0, width)
                            for r in inputs.references]
        text_mask = None if inputs.text_mask_BT is None else Tensor(inputs.text_mask_BT)
        for i in self.numbers:
            block = getattr(self.transformer_blocks, str(i))

            def run(*tensors, block=block):
                return self._block(block, tensors, inputs, tables, reference_tables, text_mask)

            if i in self.recomputed:
                moved = tape.recomputed(run, carried, block.trainable_params())
            else:
                moved = run(*carried)
            carried = self._with_conditions(moved, carried, text > 0)
        if self.last:
            return (self._unpatchify(self.proj_out(self.norm_out(*carried[:2])), h, w),)
        return carried if self.blocks_after else carried[:2]

    @staticmethod
    def _with_conditions(moved: tuple, before: tuple, has_text: bool) -> tuple:
        """The tokens that a block moved, and every temb as it was, in the order in which they travel."""
        head = 2 if has_text else 1  # img and txt
        carried = (moved[0], before[1], *moved[1:head])
        for tokens, temb in zip(moved[head:], before[head + 2::2]):
            carried = (*carried, tokens, temb)
        return carried

    def _tokens(self, latents: np.ndarray) -> int:
        return latents.shape[2] * latents.shape[3] // self.config.patch_size**2

    def _begin(self, inputs: Inputs) -> tuple:
        """What travels, from the arrays: (img, temb, [txt], then tokens and temb of every reference)."""
        carried = (self._image(inputs.latents_BCHW, inputs.prior_ids_BN, inputs.prior_drop_BN),
                   self._temb(inputs.timestep_B, inputs.target_size_B2, inputs.crop_B2))
        if inputs.glyph_BTD.shape[1]:
            carried = (*carried, self.glyph_projector(ops.cast(Tensor(inputs.glyph_BTD), self.dtype)))
        for _, latents, ids, size in inputs.references:  # codes kept, time 0, crop (0, 0): as DiTDecoder.write
            tokens = self._image(latents, ids, np.zeros(ids.shape, bool))
            carried = (*carried, tokens, self._temb(np.zeros(1, np.float32), size, np.zeros((1, 2), np.float32)))
        return carried

    def _image(self, latents_BCHW: np.ndarray, ids_BN: np.ndarray, drop_BN: np.ndarray):
        x = self.image_projector(ops.cast(Tensor(latents_BCHW), self.dtype))
        return x + self.prior_projector(self.prior_token_embedding(Tensor(ids_BN), Tensor(drop_BN)))

    def _temb(self, *arrays: np.ndarray):
        return self.time_condition_embed(*(Tensor(array) for array in arrays))

    def _block(self, block, carried: tuple, inputs: Inputs, tables, reference_tables, text_mask) -> tuple:
        """(img, [txt], tokens of every reference) after one block, from what travels."""
        img, temb, *rest = carried
        has_text = inputs.glyph_BTD.shape[1] > 0
        txt = rest.pop(0) if has_text else img[:, :0]
        moved, caches = [], {}
        for reference, (cos, sin), tokens, temb_r in zip(inputs.references, reference_tables, rest[::2], rest[1::2]):
            tokens, _, present = block(tokens, tokens[:, :0], temb_r, cos, sin, None, None)
            moved.append(tokens)
            caches.setdefault(reference.sample, []).append((present,))
        cache = mask = None
        if caches:
            cache, mask = stack_samples([join_images(images) for images in caches.values()])
        key_mask = self._key_mask(inputs, text_mask, cache, None if mask is None else Tensor(mask))
        img, txt, _ = block(img, txt, temb, *tables, key_mask, None if cache is None else cache[0])
        return (img, txt, *moved) if has_text else (img, *moved)

    def _key_mask(self, inputs: Inputs, text_mask, cache, mask):
        return whole.DiTDecoder._key_mask(self, Tensor(inputs.prior_ids_BN), inputs.glyph_BTD.shape[1], text_mask,
                                          cache, mask)

    def _unpatchify(self, x, h: int, w: int):
        return whole.DiTDecoder._unpatchify(self, x, h, w)


