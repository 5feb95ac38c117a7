"""Reconstruction by the VAE: what makes a small VAE from nothing (no adversary, no perceptual network).

loss of a sample = mean square error + l1_weight * mean absolute error + kl_weight * mean KL to the standard normal,
the first two over the pixels in [-1, 1], the last over the latent elements. In training the latent is sampled; in
validation its mode is taken (noise of zeros), the same graph.

Shapes: N samples, H W pixel sides, Z latent channels, h w latent sides.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from mindspore import Parameter, Tensor, mint, nn

from mindglm import ops
from mindglm.errors import UserError
from mindglm.models.vae.model import VAE
from mindglm.recipe.models import VAEConfig

MEASURE_BATCH = 8
INITIAL_LOGVAR = -6.0
"""A fresh posterior's log variance. At 0 its noise would bury the latents and little is learned for long."""


class Network(nn.Cell):
    """Loss of a batch of crops. `model` keeps its own parameter names (no prefix)."""

    def __init__(self, model: VAE, l1_weight: float, kl_weight: float):
        super().__init__(auto_prefix=False)
        self.model = model
        self.l1_weight, self.kl_weight = l1_weight, kl_weight

    def construct(self, pixels_N3HW, noise_NZhw):
        """(loss_sum, weight_sum), both float32 scalars: the sum of the samples' losses and their number."""
        mean, logvar = self.model.moments(pixels_N3HW)
        latents = mean + mint.exp(0.5 * logvar) * noise_NZhw
        error = self.model.decoder(latents) - pixels_N3HW
        divergence = 0.5 * (mean * mean + mint.exp(logvar) - 1.0 - logvar)
        loss = (mint.mean(error * error) + self.l1_weight * mint.mean(mint.abs(error))
                + self.kl_weight * mint.mean(divergence))
        count = float(pixels_N3HW.shape[0])
        return loss * count, Tensor(count)


class VaeReconstruction:
    """Objective `vae_reconstruction`: `network`, `model`, and what the trainer asks of them."""

    def __init__(self, model_config: VAEConfig, options, seed: int):
        """`options` has crop_size (pixels), l1_weight and kl_weight; weights are drawn from `seed`."""
        factor = model_config.spatial_factor
        if options.crop_size < factor or options.crop_size % factor:
            raise UserError(f"objective.crop_size is {options.crop_size}, expected a positive multiple of {factor}, "
                            "the ratio of pixels to latents of this VAE")
        self.config, self.options = model_config, options
        self.model = VAE(model_config)
        ops.init_parameters(self.model, seed)
        start_certain(self.model)
        self.network = Network(self.model, options.l1_weight, options.kl_weight)

    def collate(self, samples: list[dict], draw, training: bool) -> tuple[np.ndarray, ...]:
        """Crops (N, 3, crop, crop) float32 in [-1, 1] and noise (N, Z, h, w) float32.

        Training: a random crop and a random horizontal flip of each image, and normal noise. Otherwise the central
        crop and noise of zeros. `samples` give "pixels" (H, W, 3) uint8, sides of at least crop_size.
        """
        crops = [self._crop(sample, draw(i, "vae_crop") if training else None) for i, sample in enumerate(samples)]
        side = self.options.crop_size // self.config.spatial_factor
        shape = (self.config.latent_channels, side, side)
        noise = [draw(i, "vae_noise").standard_normal(shape, dtype=np.float32) if training
                 else np.zeros(shape, np.float32) for i in range(len(samples))]
        return to_model_range(np.stack(crops)), np.stack(noise)

    def _crop(self, sample: dict, generator: np.random.Generator | None) -> np.ndarray:
        pixels, crop = sample["pixels"], self.options.crop_size
        spare = pixels.shape[0] - crop, pixels.shape[1] - crop
        if min(spare) < 0:
            raise UserError(f"sample {sample.get('id', '?')}: image of {pixels.shape[0]}x{pixels.shape[1]} pixels is "
                            f"smaller than objective.crop_size {crop}; prepare larger images or lower crop_size")
        if generator is None:
            top, left, flip = spare[0] // 2, spare[1] // 2, False
        else:
            top, left = (int(generator.integers(room + 1)) for room in spare)
            flip = bool(generator.integers(2))
        piece = pixels[top : top + crop, left : left + crop]
        return piece[:, ::-1] if flip else piece

    def component_tensors(self) -> dict[str, Parameter]:
        """The `vae` component under its released names."""
        return {parameter.name: parameter for parameter in self.model.get_parameters()}

    def finish(self, samples: Iterable[dict]) -> VAEConfig:
        """The config to export: latents_mean and latents_std measured over whole images.

        The trainer calls it once, before export, with the weights to be exported (EMA weights where it keeps them) in
        `self.model`. Latents of the public checkpoint are normalised per channel; a freshly trained VAE knows these
        numbers only now.
        """
        total, squares, count = 0.0, 0.0, 0
        for images in _batches(samples, self.config.spatial_factor):
            mean, _ = self.model.moments(Tensor(to_model_range(images)))
            latents = mean.asnumpy().astype(np.float64)
            total = total + latents.sum((0, 2, 3))
            squares = squares + (latents**2).sum((0, 2, 3))
            count = count + latents.size // latents.shape[1]
        if count == 0:
            raise UserError("no images to measure the latents' mean and deviation on: the dataset split is empty")
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
        return dataclasses.replace(self.config, latents_mean=tuple(float(np.float32(v)) for v in mean),
                                   latents_std=tuple(float(np.float32(v)) for v in std))


def start_certain(model: VAE) -> None:
    """Set the bias of the encoder's log variances to INITIAL_LOGVAR."""
    bias = model.encoder.conv_out.bias
    values = bias.asnumpy().copy()
    values[len(values) // 2 :] = INITIAL_LOGVAR
    bias.set_data(Tensor(values))


def to_model_range(pixels_NHW3: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(pixels_NHW3.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1)


def _batches(samples: Iterable[dict], factor: int):
    """Whole images, cut to multiples of `factor`, in batches of one size."""
    waiting = defaultdict(list)
    for sample in samples:
        height, width = (side // factor * factor for side in sample["pixels"].shape[:2])
        waiting[height, width].append(sample["pixels"][:height, :width])
        if len(waiting[height, width]) == MEASURE_BATCH:
            yield np.stack(waiting.pop((height, width)))
    for images in waiting.values():
        yield np.stack(images)
