"""From prompts to image codes: one prefill, then one cached pass of the AR generator a code (reference section 3.1).

The cache is allocated once for the whole run: the pass of a new token sees the cache and itself, and its key and value
then replace the empty entry of its turn. Keys are stored rotated and attention does not care for their order, so this
equals a growing cache, and every step has the same shapes: one compiled graph serves them all.

Shapes: B pictures, S prompt length after left padding, T cache length, V ids the head can emit, G key/value heads.
"""

import numpy as np
from mindspore import Tensor, mint

from mindglm import ops
from mindglm.errors import UserError
from mindglm.generate.ar_step import DecodeStep, Weights
from mindglm.generate.sampling import SamplingConfig, choose
from mindglm.models.ar_generator.positions import decode_positions, prefill_positions

CACHE_MULTIPLE = 32
"""Cache lengths are raised to a multiple of this, so that prompts of nearby lengths share a compiled step."""


class ArSampler:
    """Draws preview and large codes from an ArGenerator."""

    def __init__(self, model, sampling: SamplingConfig, compiled: bool = False):
        """compiled: the pass of one code is one graph on rearranged weights (ar_step.py); CPU, 1-2 s to compile."""
        self.model, self.sampling, self.compiled = model, sampling, compiled
        self._weights, self._steps = None, {}

    def generate(self, prompts, large, preview, generators, hf_compatible: bool = False, on_code=None,
                 source_grids=None):
        """Samples the preview grid, then the large grid, for every prompt.

        Args:
            prompts: prompt ids of each picture (lists of int), all of one target size; codes of source images are in
                their places.
            large, preview: (rows, columns) of the two grids; preview is None with source images: none is written.
            generators: one np.random.Generator a picture.
            hf_compatible: let the model choose any id, as the public pipeline does, and fail where that one would.
            on_code: called without argument after every code.
            source_grids: of each prompt, the (rows, columns) of its source images; None for text to image.

        Returns int32 preview codes (B, *preview), or None, and large codes (B, *large).
        """
        config = self.model.config
        num_codes = config.num_codes
        grids = [large] if preview is None else [large, preview]  # as the prompt lists them; written in reverse
        total = sum(rows * columns for rows, columns in grids)
        cut = total - large[0] * large[1]
        ids_BS, valid_BS = pad_prompts(prompts, config.image_end_token_id)
        position_3BS, after = prefill_positions(ids_BS, valid_BS, source_grids, config.image_start_token_id,
                                                config.image_end_token_id)
        position_3BL = decode_positions(after, [grids] * len(prompts))
        logits, follow = self._prefill(ids_BS, position_3BS, valid_BS, position_3BL[:, :, :total])
        codes_BL = np.zeros((len(prompts), total), np.int32)
        for index in range(total):
            chosen = choose(logits, self.sampling, generators, None if hf_compatible else num_codes)
            if chosen.max() >= num_codes:
                raise UserError(f"the AR generator chose id {chosen.max()} at code {index} of {total}, which is no "
                                "image code; the public pipeline fails here too. Run without hf_compatible.")
            codes_BL[:, index] = chosen
            if on_code is not None:
                on_code()
            if index + 1 < total:
                logits = follow(chosen, index)
        preview_codes = None if preview is None else codes_BL[:, :cut].reshape(-1, *preview)
        return preview_codes, codes_BL[:, cut:].reshape(-1, *large)

    def _prefill(self, ids_BS, position_3BS, valid_BS, position_3BL):
        """Logits (B, V) of the first code, and the function that gives the next ones for (codes, their number)."""
        batch, length = ids_BS.shape
        entries = -(-(length + position_3BL.shape[2]) // CACHE_MULTIPLE) * CACHE_MULTIPLE
        valid = None if valid_BS.all() else Tensor(valid_BS)
        logits, cache = self.model.prefill(Tensor(ids_BS), Tensor(position_3BS), valid)
        if not self.compiled:
            return logits.asnumpy(), _PlainStep(self.model, cache, valid_BS, position_3BL, entries).feed
        if self._weights is None:
            self._weights = Weights(self.model)
        self._weights.refresh()
        if (batch, entries) not in self._steps:
            self._steps[batch, entries] = DecodeStep(self._weights, batch, entries)
        step = self._steps[batch, entries]
        step.begin(cache, valid_BS, position_3BL)
        return logits.asnumpy(), step.feed


class _PlainStep:
    """The pass of one code a picture as the model has it, operation by operation."""

    def __init__(self, model, cache, valid_BS: np.ndarray, position_3BL: np.ndarray, entries: int):
        """As DecodeStep and its `begin`."""
        self._model, self._positions = model, position_3BL
        batch, self._length = valid_BS.shape
        self._cache = [(_extended(k, entries), _extended(v, entries)) for k, v in cache]
        self._valid_BT = np.concatenate([valid_BS, np.zeros((batch, entries - self._length), bool)], 1)

    def feed(self, ids_B: np.ndarray, index: int) -> np.ndarray:
        """As DecodeStep.feed."""
        position_3B1 = np.ascontiguousarray(self._positions[:, :, index:index + 1])
        mask = np.concatenate([self._valid_BT, np.ones((len(ids_B), 1), bool)], 1)  # the new token sees itself, last
        logits, grown = self._model.decode(Tensor(ids_B[:, None]), Tensor(position_3B1), self._cache, Tensor(mask))
        length = self._valid_BT.shape[1]
        entry = self._length + index
        here = Tensor((np.arange(length) == entry).reshape(1, 1, -1, 1))
        self._cache = [tuple(mint.where(here, new[:, :, length:], old) for new, old in zip(*pair))
                       for pair in zip(grown, self._cache)]
        self._valid_BT[:, entry] = True
        return logits.asnumpy()


def _extended(x_BGSK, entries: int):
    """With empty entries up to `entries`."""
    b, g, s, k = x_BGSK.shape
    return ops.concat((x_BGSK, Tensor(np.zeros((b, g, entries - s, k), np.float32), x_BGSK.dtype)), 2)


def pad_prompts(prompts, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompt ids -> int32 (B, S) padded on the left, and the mask (B, S) of real tokens."""
    longest = max(len(p) for p in prompts)
    ids_BS = np.full((len(prompts), longest), pad_id, np.int32)
    valid_BS = np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        ids_BS[row, longest - len(prompt):] = prompt
        valid_BS[row, longest - len(prompt):] = True
    return ids_BS, valid_BS
