"""From prompts to image codes: one prefill, then one cached pass of the AR generator a code (reference section 3.1).

The cache is allocated once for the whole run: the pass of a new token sees the cache and itself, and its key and value
then replace the empty entry of its turn. Keys are stored rotated and attention does not care for their order, so this
equals a growing cache, and every step has the same shapes: one compiled graph serves them all.

Shapes: B pictures, S prompt length after left padding, T cache length, V ids the head can emit, G key/value heads.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from mindglm import ops
from mindglm.errors import UserError
from mindglm.generate.sampling import SamplingConfig, choose
from mindglm.models.ar_generator.positions import decode_positions, prefill_positions

CACHE_MULTIPLE = 32
"""Cache lengths are raised to a multiple of this, so that prompts of nearby lengths share a compiled step."""


class ArSampler:
    """Draws preview and large codes from an ArGenerator."""

    def __init__(self, model, sampling: SamplingConfig, compiled: bool = False):
        """compiled: run the single-token step as one graph (about 5 times as fast on CPU, 1-2 s to compile)."""
        self.model, self.sampling = model, sampling

        def step(ids_B1, position_3B1, cache, mask_BT, entry_T):
            logits, grown = model.decode(ids_B1, position_3B1, cache, mask_BT)
            length = cache[0][0].shape[2]
            kept = []
            for i in range(len(cache)):  # noqa: PLC0200  (a form that ms.jit parses)
                k, v = cache[i]
                k_new, v_new = grown[i]
                k, v = mint.where(entry_T, k_new[:, :, length:], k), mint.where(entry_T, v_new[:, :, length:], v)
                kept.append((k, v))
            return logits, kept

        self._step = ms.jit(step) if compiled else step

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
        logits, cache, valid_BT = self._prefill(ids_BS, position_3BS, valid_BS, total)
        codes_BL = np.zeros((len(prompts), total), np.int32)
        for index in range(total):
            chosen = choose(logits.asnumpy(), self.sampling, generators, None if hf_compatible else num_codes)
            if chosen.max() >= num_codes:
                raise UserError(f"the AR generator chose id {chosen.max()} at code {index} of {total}, which is no "
                                "image code; the public pipeline fails here too. Run without hf_compatible.")
            codes_BL[:, index] = chosen
            if on_code is not None:
                on_code()
            if index + 1 < total:
                entry = ids_BS.shape[1] + index
                logits, cache = self._feed(chosen, position_3BL[:, :, index:index + 1], cache, valid_BT, entry)
                valid_BT[:, entry] = True
        preview_codes = None if preview is None else codes_BL[:, :cut].reshape(-1, *preview)
        return preview_codes, codes_BL[:, cut:].reshape(-1, *large)

    def _prefill(self, ids_BS, position_3BS, valid_BS, total: int):
        """Logits (B, V) of the first code, the cache with room for all codes, and which entries are filled (B, T)."""
        batch, length = ids_BS.shape
        room = -(-(length + total) // CACHE_MULTIPLE) * CACHE_MULTIPLE
        valid = None if valid_BS.all() else Tensor(valid_BS)
        logits, cache = self.model.prefill(Tensor(ids_BS), Tensor(position_3BS), valid)

        def extended(x_BGSK):
            b, g, s, k = x_BGSK.shape
            return ops.concat((x_BGSK, Tensor(np.zeros((b, g, room - s, k), np.float32), x_BGSK.dtype)), 2)

        valid_BT = np.concatenate([valid_BS, np.zeros((batch, room - length), bool)], 1)
        return logits, [(extended(k), extended(v)) for k, v in cache], valid_BT

    def _feed(self, chosen, position_3B1, cache, valid_BT, entry: int):
        """Feeds the chosen codes: the next logits, and the cache with their keys and values at `entry`."""
        mask = np.concatenate([valid_BT, np.ones((len(chosen), 1), bool)], 1)  # the new token sees itself, last
        entry_T = (np.arange(valid_BT.shape[1]) == entry).reshape(1, 1, -1, 1)
        return self._step(Tensor(chosen[:, None]), Tensor(np.ascontiguousarray(position_3B1)), ms.mutable(cache),
                          Tensor(mask), Tensor(entry_T))


def pad_prompts(prompts, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompt ids -> int32 (B, S) padded on the left, and the mask (B, S) of real tokens."""
    longest = max(len(p) for p in prompts)
    ids_BS = np.full((len(prompts), longest), pad_id, np.int32)
    valid_BS = np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        ids_BS[row, longest - len(prompt):] = prompt
        valid_BS[row, longest - len(prompt):] = True
    return ids_BS, valid_BS
