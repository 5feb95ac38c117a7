"""Flow matching of the DiT decoder (reference section 5.3).

    z = normalised latent; k in 1..1000; sigma = mu / (mu + 1000 / k - 1); e normal noise
    input (1 - sigma) z + sigma e, time k - 1 (unshifted); target e - z; loss = mean square error of a sample

Conditions are those of inference: the image's own prior codes repeated twice each way, the caption's glyph features,
target size and crop. Some samples lose both (the unconditional branch of guidance), some the glyphs alone, and some
codes are replaced at random, because at inference they are sampled and not always right.

Shapes: B samples, C latent channels, h w latent sides, N DiT image tokens, T glyph tokens, D glyph width.
"""

import numpy as np
from mindspore import Parameter, Tensor, mint, nn

from mindglm import ops
from mindglm.errors import UserError
from mindglm.models.dit_decoder import stages
from mindglm.models.dit_decoder.conditions import pad_glyphs, upsample_codes
from mindglm.models.dit_decoder.model import DiTDecoder
from mindglm.models.dit_decoder.scheduler import Scheduler, model_time
from mindglm.objectives.parts import Parts, StageList
from mindglm.recipe.models import DiTConfig, SchedulerConfig


class Network(nn.Cell):
    """Loss of a batch. `model` keeps its own parameter names (no prefix)."""

    def __init__(self, model: DiTDecoder):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, noisy_BChw, target_BChw, glyph_BTD, text_mask_BT, prior_ids_BN, prior_drop_BN, timestep_B,
                  target_size_B2, crop_B2):
        """(loss_sum, weight_sum), float32 scalars: the sum of the samples' mean square errors, and their number."""
        velocity = self.predict(noisy_BChw, target_BChw, glyph_BTD, text_mask_BT, prior_ids_BN, prior_drop_BN,
                                timestep_B, target_size_B2, crop_B2)
        return error_sums(velocity, target_BChw)

    def predict(self, noisy_BChw, _, glyph_BTD, text_mask_BT, *conditions):
        """Velocity (B, C, h, w) of a batch."""
        return self.model(noisy_BChw, glyph_BTD, *conditions, text_mask_BT)


def error_sums(velocity_BChw, target_BChw):
    """(sum of the samples' mean square errors, their number) from the velocity."""
    error = velocity_BChw.float() - target_BChw
    count = float(target_BChw.shape[0])
    return mint.mean(error * error) * count, Tensor(count)


class FlowMatching:
    """Objective `flow_matching`: `network`, `model`, and what the trainer asks of them."""

    def __init__(self, model_config: DiTConfig, options, seed: int, scheduler: SchedulerConfig = SchedulerConfig(),
                 parts: Parts | None = None):
        """`options`: condition_dropout, glyph_dropout, code_corruption, timestep_density (uniform | logit_normal) and
        glyph_pad_to. Weights are drawn from `seed`; `scheduler` holds the shift of sigma.

        parts: the pipeline stages that this process holds in place of the whole model; the loss is then `stage_loss`
        after the last of them, and `network` holds parameters only.
        """
        self.config, self.options = model_config, options
        self.scheduler = Scheduler(scheduler)
        if parts is None:
            self.model = DiTDecoder(model_config)
            self.network = Network(self.model)
        else:
            self.model = self.network = StageList(
                [stages.Stage(model_config, start, stop, parts.recompute) for start, stop in parts.ranges])
        ops.init_parameters(self.model, seed)

    def collate(self, samples: list[dict], draw, training: bool) -> tuple[np.ndarray, ...]:
        """The arguments of `network`, float32 but prior_ids int32 and the masks bool.

        `samples` give latents (C, h, w), glyph (T, D), empty_glyph (1, D), large_codes (h / 4, w / 4), target_size (2,)
        and crop (2,); one batch holds one latent size. Without `training` nothing is dropped or corrupted; time and
        noise are drawn all the same.
        """
        self._check_sizes(samples)
        noisy, target, times = zip(*(self._diffuse(sample["latents"], i, draw) for i, sample in enumerate(samples)))
        conditions = [self._conditions(sample, i, draw, training) for i, sample in enumerate(samples)]
        glyphs, codes, drops = zip(*conditions)
        glyph, mask = pad_glyphs(glyphs, self.options.glyph_pad_to)
        ids = upsample_codes(np.stack(codes))
        drop = np.broadcast_to(np.asarray(drops)[:, None], ids.shape).copy()
        return (np.stack(noisy), np.stack(target), glyph, mask, ids, drop, np.asarray(times, np.float32),
                np.stack([s["target_size"] for s in samples]).astype(np.float32),
                np.stack([s["crop"] for s in samples]).astype(np.float32))

    @staticmethod
    def stage_inputs(batch: tuple[np.ndarray, ...]) -> stages.Inputs:
        """What the pipeline's stages read of a batch of `collate`."""
        noisy, _, glyph, text_mask, *conditions = batch
        return stages.Inputs(noisy, glyph, *conditions, text_mask)

    @staticmethod
    def stage_loss(velocity_BChw, batch: tuple[np.ndarray, ...]):
        """(loss_sum, weight_sum) from the output of the last stage."""
        return error_sums(velocity_BChw, Tensor(batch[1]))

    def _check_sizes(self, samples: list[dict]) -> None:
        shapes = {sample["latents"].shape for sample in samples}
        if len(shapes) > 1:
            raise UserError(f"latents of different sizes in one batch: {sorted(shapes)}; prepare images of one size")
        (channels, height, width), codes = shapes.pop(), samples[0]["large_codes"].shape
        if channels != self.config.in_channels:
            raise UserError(f"the dataset's latents have {channels} channels, the DiT takes {self.config.in_channels}; "
                            "prepare the data with the VAE this model belongs to, or set model_config.in_channels")
        assert (height, width) == (4 * codes[0], 4 * codes[1]), f"latents {height}x{width}, codes {codes}"

    def _diffuse(self, latents: np.ndarray, i: int, draw) -> tuple[np.ndarray, np.ndarray, float]:
        """(noisy latents, velocity target, time given to the DiT) of one sample."""
        k = self._integer_time(draw(i, "time"))
        sigma = self.scheduler.sigma(k, latents.shape[1] * latents.shape[2] // self.config.patch_size**2)
        noise = draw(i, "noise").standard_normal(latents.shape, dtype=np.float32)
        return (1 - sigma) * latents + sigma * noise, noise - latents, model_time(k)

    def _integer_time(self, generator: np.random.Generator) -> int:
        total = self.scheduler.config.num_train_timesteps
        if self.options.timestep_density == "uniform":
            return int(generator.integers(1, total + 1))
        assert self.options.timestep_density == "logit_normal", self.options.timestep_density
        share = 1 / (1 + np.exp(-generator.standard_normal()))
        return int(np.clip(np.ceil(share * total), 1, total))

    def _conditions(self, sample: dict, i: int, draw, training: bool) -> tuple[np.ndarray, np.ndarray, bool]:
        """(glyph features, code grid, whether the codes are withheld) of one sample, after dropout and corruption."""
        glyph, codes = sample["glyph"], sample["large_codes"]
        if not training:
            return glyph, codes, False
        options = self.options
        shares = options.condition_dropout, options.glyph_dropout
        drop_both, drop_glyph = draw(i, "condition_dropout").random(2) < shares
        if drop_both or drop_glyph:
            glyph = sample["empty_glyph"]
        generator = draw(i, "code_corruption")
        wrong = generator.random(codes.shape) < options.code_corruption
        random_codes = generator.integers(self.config.prior_vq_quantizer_codebook_size, size=codes.shape)
        return glyph, np.where(wrong, random_codes, codes), bool(drop_both)

    def component_tensors(self) -> dict[str, Parameter]:
        """The `transformer` component under its released names."""
        return {parameter.name: parameter for parameter in self.model.get_parameters()}
