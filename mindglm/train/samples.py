"""Sample pictures of a running training: a look, not a measurement. Held-out samples only.

vae, tokenizer: picture | reconstruction. dit: decoded latent | what a few Euler steps make of its codes. ar: code grid
as colours | the likeliest codes under the true ones before them. Every picture draws the same noise, so that the
pictures of a run show its progress.
"""

import functools
import pathlib

import numpy as np
from mindspore import Tensor
from PIL import Image

from mindglm import order
from mindglm.checkpoint import start
from mindglm.checkpoint.released import has_component
from mindglm.parallel import transport
from mindglm.train.batches import members_of, validation_mix

SHOWN = 6
EULER_STEPS = 8


def picture(objective, recipe, held_out, predict=None) -> np.ndarray | None:
    """uint8 (H, W, 3), two rows: held-out samples and what the model makes of them. None: there is nothing to see.

    Of several sizes (buckets) each has two rows of its own, and of the SHOWN samples as many as its share.

    predict: TrainStep.predict, the model that is trained. All ranks of a pipeline draw the picture together, and its
    first one has it.
    """
    makers = {"vae_reconstruction": _vae, "vq_reconstruction": _tokenizer, "flow_matching": _dit, "ar_next_token": _ar}
    make = makers.get(recipe.trainer.type)
    if make is None or held_out is None:
        return None
    strips = []
    for own, count in zip(members_of(held_out), validation_mix(held_out, SHOWN)):
        rows = make(objective, recipe, [held_out[int(i)] for i in own[:count]], predict) if count else ()
        strips.extend(np.concatenate(list(row), 1) for row in rows or ())
    if not strips:
        return None
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255)
                           for strip in strips], 0)


def write(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
    """Save a picture as PNG; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _to_pixels(x_B3HW: np.ndarray) -> np.ndarray:
    """[-1, 1] -> uint8 (B, H, W, 3)"""
    return np.clip(np.round((x_B3HW.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255).astype(np.uint8)


def _vae(objective, recipe, samples, _):
    pixels = np.stack([sample["pixels"] for sample in samples])
    factor = objective.config.spatial_factor
    pixels = pixels[:, :pixels.shape[1] // factor * factor, :pixels.shape[2] // factor * factor]
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1
    return pixels, _to_pixels(objective.model.decode(objective.model.encode(Tensor(x))).asnumpy())


def _tokenizer(objective, recipe, samples, _):
    large, _ = objective.collate(samples, None, False)
    rebuilt, _, _ = objective.network.rebuild(Tensor(large))
    side = objective.config.vision_config.patch_size
    return [_unpatchify(patches.reshape(large.shape), side) for patches in (large, rebuilt.asnumpy())]


def _unpatchify(patches_BhwP: np.ndarray, side: int) -> np.ndarray:
    b, h, w, _ = patches_BhwP.shape
    x = patches_BhwP.reshape(b, h, w, 3, side, side).transpose(0, 3, 1, 4, 2, 5)
    return _to_pixels(x.reshape(b, 3, h * side, w * side))


def _dit(objective, recipe, samples, predict):
    model_dir = start.base(recipe.pretrained_model_dir)
    if model_dir is None or not has_component(model_dir, "vae"):
        return None
    noise = np.stack([order.rng(recipe.seed, 0, i, "picture/noise").standard_normal(sample["latents"].shape, np.float32)
                      for i, sample in enumerate(samples)])
    # Without training nothing is dropped or corrupted: the conditions are those of inference.
    _, target, glyph, mask, ids, drop, _, *sizes = objective.collate(
        samples, lambda i, purpose: order.rng(recipe.seed, 0, i, f"picture/{purpose}"), False)
    timesteps, _ = objective.scheduler.tables(*noise.shape[2:], EULER_STEPS)
    x = noise
    for i, t in enumerate(timesteps):
        # The scheduler lists integer times from 1; the DiT counts from 0.
        times = np.full(len(x), t - 1, np.float32)
        velocity = predict((x, target, glyph, mask, ids, drop, times, *sizes), lambda v: v.float().asnumpy())
        x = objective.scheduler.step(x, velocity, i)
    if transport.rank() > 0:  # the velocities of its stages were wanted, the picture is not
        return None
    vae, latents = _frozen_vae(model_dir), np.stack([sample["latents"] for sample in samples])
    return [_to_pixels(vae.decode(Tensor(z)).asnumpy()) for z in (latents, x)]


@functools.lru_cache(maxsize=1)
def _frozen_vae(model_dir: str):
    from mindglm.checkpoint.released import component_config, read_component
    from mindglm.models.vae.config import from_hf
    from mindglm.models.vae.model import VAE

    vae = VAE(from_hf(component_config(model_dir, "vae")))
    parameters = {parameter.name: parameter for parameter in vae.get_parameters()}
    for name, values in read_component(model_dir, "vae", parameters).items():
        parameters[name].set_data(Tensor(values))
    return vae


def _ar(objective, recipe, samples, predict):
    batch = objective.collate(samples, None, False)
    labels = batch[2]
    guesses = predict(batch, lambda logits: logits.float().asnumpy().argmax(-1).astype(np.int32))
    rows, columns = samples[0]["large_codes"].shape
    classes = guesses.max() + objective.config.num_codes + 1
    palette = np.random.default_rng(0).integers(256, size=(classes, 3), dtype=np.uint8)
    pictures = []
    for codes in (labels, guesses):
        # The last label of a sample is the image end id; the large grid lies right before it.
        ends = [np.flatnonzero(row >= 0)[-1] for row in labels]
        grids = np.stack([row[end - rows * columns:end].reshape(rows, columns) for row, end in zip(codes, ends)])
        pictures.append(palette[grids].repeat(8, 1).repeat(8, 2))
    return pictures
