"""Our side of the benchmarks: each task on the folder that the peer wrote, the way mindglm itself runs it on CPU.

Training steps are the trainer's own (one compiled graph, flat AdamW); decoding is the compiled static-cache step.
"""

import pathlib
import time

import numpy as np
from mindspore import Tensor

from mindglm import ops  # noqa: F401  (sets up the device before the first computation)
from mindglm.generate.pipeline import Pipeline
from mindglm.models.ar_generator.positions import training_positions
from mindglm.objectives.ar_next_token import Network as ArNetwork
from mindglm.objectives.flow_matching import Network as FlowNetwork
from mindglm.recipe import schema
from mindglm.train import optimizer as optimizers
from mindglm.train.step import local_step
from tests.benchmarks import sizes


class Ours:
    def __init__(self, folder: pathlib.Path, size: str, compiled: bool = True):
        self.size, self.compiled = size, compiled
        self.pipe = Pipeline.from_pretrained(folder, compiled=compiled)
        self.inputs = draw_inputs(self.pipe, size)
        self._steps, self._updates = {}, {}

    def save_inputs(self, path: pathlib.Path) -> None:
        np.savez(path, **self.inputs)

    def measure(self, task: str) -> dict:
        """{"wall": ..., "cpu": ..., "value": ...} as the peer answers."""
        wall, cpu = time.perf_counter(), time.process_time()
        value = getattr(self, task)()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "value": value}

    def ar_train_step(self) -> float:
        names = ("ar.ids", "ar.positions", "ar.labels", "ar.weights")
        return self._train(lambda: ArNetwork(self.pipe.ar), names)

    def dit_train_step(self) -> float:
        names = ("dit.noisy", "dit.target", "dit.glyph", "dit.glyph_mask", "dit.prior_ids", "dit.prior_drop",
                 "dit.time", "dit.target_size", "dit.crop")
        return self._train(lambda: FlowNetwork(self.pipe.dit), names)

    def _train(self, build, names) -> float:
        if names not in self._steps:
            network = build()
            section = schema.OptimizerSection(betas=(0.9, 0.95), weight_decay=0.01)
            optimizer = optimizers.build(network.trainable_params(), section)
            self._steps[names] = local_step(network, optimizer, schema.RunnerWrapperSection(), self.compiled)
        self._updates[names] = self._updates.get(names, 0) + 1
        batch = tuple(self.inputs[name] for name in names)
        return self._steps[names]([batch], 1e-6, self._updates[names]).loss

    def ar_decode(self) -> float:
        generator = np.random.Generator(np.random.Philox(key=7))
        codes = self.pipe.sample_codes([sizes.PROMPT], sizes.HEIGHT, sizes.WIDTH, [generator])
        return float(codes.size * 4)  # the public pipeline returns the large grid repeated twice each way

    def vae_decode(self) -> float:
        return float(np.abs(self.pipe.vae_decode(Tensor(self.inputs["vae.latents"])).asnumpy()).mean())

    def pipeline(self) -> float:
        images = self.pipe([sizes.PROMPT], sizes.HEIGHT, sizes.WIDTH, steps=sizes.STEPS,
                           guidance_scale=sizes.GUIDANCE)
        return float(np.asarray(images[0]).size)


def draw_inputs(pipe: Pipeline, size: str) -> dict[str, np.ndarray]:
    """The arrays that both sides are given, float32 and int32."""
    rng = np.random.default_rng(0)
    config = pipe.ar.config
    batch, prompt = sizes.AR_SHAPE[size]
    codes = sum(rows * columns for rows, columns in sizes.GRIDS)
    ids = rng.integers(0, config.num_codes, (batch, prompt + codes), dtype=np.int32)
    positions = training_positions(prompt, list(sizes.GRIDS)).astype(np.int32)
    weights = np.ones(ids.shape, np.float32)
    weights[:, : prompt - 1] = 0
    pictures, side, glyphs = sizes.DIT_SHAPE[size]
    latents = pictures, pipe.vae.config.latent_channels, side, side
    tokens = pictures, (side // pipe.dit.config.patch_size) ** 2

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "ar.ids": ids, "ar.positions": np.repeat(positions[:, None], batch, 1), "ar.labels": np.roll(ids, -1, 1),
        "ar.weights": weights,
        "dit.noisy": normal(*latents), "dit.target": normal(*latents),
        "dit.glyph": normal(pictures, glyphs, pipe.dit.config.text_embed_dim),
        "dit.glyph_mask": np.ones((pictures, glyphs), bool),
        "dit.prior_ids": rng.integers(0, config.num_codes, tokens, dtype=np.int32),
        "dit.prior_drop": np.zeros(tokens, bool), "dit.time": rng.uniform(0, 999, pictures).astype(np.float32),
        "dit.target_size": np.full((pictures, 2), 8.0 * side, np.float32),
        "dit.crop": np.zeros((pictures, 2), np.float32),
        "vae.latents": normal(1, latents[1], sizes.VAE_SIDE[size], sizes.VAE_SIDE[size]),
    }
