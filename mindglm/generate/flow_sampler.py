"""From noise to latents: Euler steps of the flow under classifier-free guidance (reference sections 2.9 and 3.1).

Everything outside the DiT is NumPy in float32, as the public pipeline keeps predictions and latents.

Shapes: B pictures, C latent channels, h w latent sides (H / 8, W / 8), T glyph tokens, D their width,
N = (h / 2) (w / 2) prior codes; n samples with reference images, R reference tokens of a sample.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindglm import ops  # noqa: F401  (sets up the device before the first computation)
from mindglm.models.dit_decoder.model import Cache
from mindglm.models.dit_decoder.scheduler import model_time


@dataclass(frozen=True)
class FlowCondition:
    """What one DiT pass is told besides the noisy latents."""

    glyph_BTD: np.ndarray
    glyph_mask_BT: np.ndarray | None
    """True where a glyph token is real; None: every token is attended, padding included, as in the public pipeline."""
    prior_ids_BN: np.ndarray
    prior_drop_BN: np.ndarray
    """True where the prior code is withheld."""
    references: Cache | None = None
    """Of the reference images, n samples, n divides B; None: text to image, or the pass without conditions."""
    reference_mask_nR: np.ndarray | None = None
    """True where a reference token is real; None: all are."""


def velocity(dit, latents_BChw: np.ndarray, condition: FlowCondition, time_B: np.ndarray, height: int, width: int,
             crop_B2=None) -> np.ndarray:
    """One pass of the DiT: float32 (B, C, h, w). `time_B` is the model's time input, the unshifted step minus 1.

    crop_B2: (top, left) of each picture in its original; None for pictures that were not cropped.
    """
    batch = len(latents_BChw)
    crop_B2 = np.zeros((batch, 2), np.float32) if crop_B2 is None else crop_B2.astype(np.float32)
    size_B2 = np.tile(np.array([[height, width]], np.float32), (batch, 1))
    arguments = [latents_BChw, condition.glyph_BTD, condition.prior_ids_BN, condition.prior_drop_BN,
                 np.asarray(time_B, np.float32), size_B2, crop_B2]
    masks = [None if mask is None else Tensor(mask) for mask in (condition.glyph_mask_BT, condition.reference_mask_nR)]
    out = dit(*[Tensor(np.ascontiguousarray(a)) for a in arguments], masks[0], condition.references, masks[1])
    return out.asnumpy().astype(np.float32)


def sample_latents(dit, scheduler, noise_BChw, condition: FlowCondition, unconditional: FlowCondition | None,
                   height: int, width: int, steps: int, guidance_scale: float, on_step=None) -> np.ndarray:
    """Normalised latents float32 (B, C, h, w) after `steps` Euler steps from `noise_BChw`.

    dit: the DiTDecoder or a compiled form of it. unconditional: the pass that guidance pushes away from; not run when
    it is None or guidance_scale <= 1. on_step(i, latents) is called after every step.
    """
    timesteps, _ = scheduler.tables(noise_BChw.shape[2], noise_BChw.shape[3], steps)
    latents = np.asarray(noise_BChw, np.float32)
    guided = unconditional is not None and guidance_scale > 1
    for i in range(steps):
        time_B = np.full(len(latents), model_time(timesteps[i]), np.float32)
        v = velocity(dit, latents, condition, time_B, height, width)
        if guided:
            v_without = velocity(dit, latents, unconditional, time_B, height, width)
            v = v_without + np.float32(guidance_scale) * (v - v_without)
        latents = scheduler.step(latents, v, i)
        if on_step is not None:
            on_step(i, latents)
    return latents
