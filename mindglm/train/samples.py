"""Sample pictures of a running training, on rank 0: a look, not a measurement. Held-out samples only.

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

SHOWN = 6
EULER_STEPS = 8


def picture(objective, recipe, held_out) -> np.ndarray | None:
    """uint8 (H, W, 3), two rows: held-out samples and what the model makes of them. None: there is nothing to see."""
    makers = {"vae_reconstruction": _vae, "vq_reconstruction": _tokenizer, "flow_matching": _dit, "ar_next_token": _ar}
    make = makers.get(recipe.trainer.type)
    if make is None or held_out is None:
        return None
    rows = make(objective, recipe, _of_one_size([held_out[i] for i in range(min(SHOWN, len(held_out)))]))
    return None if rows is None else np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)


def write(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
    """Save a picture as PNG; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _of_one_size(samples: list[dict]) -> list[dict]:
    """Those whose picture is as large as the first one's."""
    sizes = [(sample["pixels"] if "pixels" in sample else sample["large_codes"]).shape for sample in samples]
    return [sample for sample, size in zip(samples, sizes) if size == sizes[0]]


def _to_pixels(x_B3HW: np.ndarray) -> np.ndarray:
    """[-1, 1] -> uint8 (B, H, W, 3)"""
    return np.clip(np.round((x_B3HW.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255).astype(np.uint8)


def _vae(objective, recipe, samples):
    pixels = np.stack([sample["pixels"] for sample in samples])
    factor = objective.config.spatial_factor
    pixels = pixels[:, :pixels.shape[1] // factor * factor, :pixels.shape[2] // factor * factor]
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1
    return pixels, _to_pixels(objective.model.decode(objective.model.encode(Tensor(x))).asnumpy())


def _tokenizer(objective, recipe, samples):
    large, _ = objective.collate(samples, None, False)
    rebuilt, _, _ = objective.network.rebuild(Tensor(large))
    side = objective.config.vision_config.patch_size
    return [_unpatchify(patches.reshape(large.shape), side) for patches in (large, rebuilt.asnumpy())]


def _unpatchify(patches_BhwP: np.ndarray, side: int) -> np.ndarray:
    b, h, w, _ = patches_BhwP.shape
    x = patches_BhwP.reshape(b, h, w, 3, side, side).transpose(0, 3, 1, 4, 2, 5)
    return _to_pixels(x.reshape(b, 3, h * side, w * side))


def _dit(objective, recipe, samples):
    vae = _frozen_vae(recipe.pretrained_model_dir)
    if vae is None:
        return None
    noise = np.stack([order.rng(recipe.seed, 0, i, "picture/noise").standard_normal(sample["latents"].shape, np.float32)
                      for i, sample in enumerate(samples)])
    # Without training nothing is dropped or corrupted: the conditions are those of inference.
    _, _, glyph, mask, ids, drop, _, size, crop = objective.collate(
        samples, lambda i, purpose: order.rng(recipe.seed, 0, i, f"picture/{purpose}"), False)
    condition = [Tensor(array) for array in (size, crop, mask)]
    glyph, ids, drop = (Tensor(array) for array in (glyph, ids, drop))
    timesteps, _ = objective.scheduler.tables(*noise.shape[2:], EULER_STEPS)
    x = noise
    for i, t in enumerate(timesteps):
        # The scheduler lists integer times from 1; the DiT counts from 0.
        velocity = objective.model(Tensor(x), glyph, ids, drop, Tensor(np.full(len(x), t - 1, np.float32)), *condition)
        x = objective.scheduler.step(x, velocity.asnumpy(), i)
    latents = np.stack([sample["latents"] for sample in samples])
    return [_to_pixels(vae.decode(Tensor(z)).asnumpy()) for z in (latents, x)]


@functools.lru_cache(maxsize=1)
def _frozen_vae(model_dir: str | None):
    from mindglm.checkpoint.released import component_config, has_component, read_component
    from mindglm.models.vae.config import from_hf
    from mindglm.models.vae.model import VAE

    if model_dir is None or not has_component(model_dir, "vae"):
        return None
    vae = VAE(from_hf(component_config(model_dir, "vae")))
    parameters = {parameter.name: parameter for parameter in vae.get_parameters()}
    for name, values in read_component(model_dir, "vae", parameters).items():
        parameters[name].set_data(Tensor(values))
    return vae


def _ar(objective, recipe, samples):
    ids, positions, labels, _ = objective.collate(samples, None, False)
    guesses = objective.model(Tensor(ids), Tensor(positions)).asnumpy().argmax(-1)
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
