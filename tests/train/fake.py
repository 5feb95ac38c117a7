"""A small objective, dataset and recipe: everything the trainer needs, in milliseconds."""

import numpy as np
from mindspore import Tensor, mint, nn

from mindglm import ops, recipe
from mindglm.recipe import schema
from mindglm.recipe.models import GlyphConfig

WIDTH = 6


class Model(nn.Cell):
    """Two layers with a norm; `idle` gets no gradient."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.up = ops.param((8, WIDTH), ("normal", 0.5))
        self.norm_scale = ops.param((8,), "ones")
        self.down = ops.param((1, 8), ("normal", 0.5))
        self.idle = ops.param((3, 3), ("normal", 1.0))

    def construct(self, x_BW):
        hidden = ops.rms_norm(mint.tanh(ops.linear(x_BW, self.up)), self.norm_scale, 1e-6)
        return ops.linear(hidden, self.down)


class Network(nn.Cell):
    """(x, y, weights) -> (weighted squared error, sum of weights)."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, x_BW, y_B1, w_B1):
        error = self.model(x_BW) - y_B1
        return (error * error * w_B1).sum(), w_B1.sum()


class Objective:
    """Noisy regression with a weight of its own for each sample."""

    def __init__(self, seed: int = 0):
        self.model = Model()
        ops.init_parameters(self.model, seed)
        self.network = Network(self.model)
        self.bad_samples = set()

    def collate(self, samples, draw, training):
        noise = [draw(i, "noise").standard_normal(WIDTH) for i in range(len(samples))]
        x = np.stack([sample["x"] + 0.1 * n for sample, n in zip(samples, noise)]).astype(np.float32)
        y = np.stack([sample["y"] for sample in samples]).astype(np.float32)
        for row, sample in enumerate(samples):
            if training and sample["index"] in self.bad_samples:
                y[row] = np.nan
        return x, y, np.stack([sample["weight"] for sample in samples]).astype(np.float32)

    def component_tensors(self):
        return {p.name: p for p in self.model.get_parameters()}


class Dataset:
    """n samples, a function of the number alone."""

    def __init__(self, n: int = 40, offset: int = 0):
        self.n, self.offset = n, offset

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.default_rng(i + self.offset)
        x = rng.standard_normal(WIDTH)
        return {"index": i, "x": x, "y": [np.sin(x).sum()], "weight": [rng.integers(1, 4)]}


def make_recipe(output_dir, *, steps=10, batch=8, accumulation=1, save=1000, mode=1, ema=0.0, frozen=(), **sections):
    """A Recipe for the fake objective (the model_config is that of another model and is not looked at)."""
    values = {
        "trainer": schema.TrainerSection("glyph_alignment", "fake"),
        "lr_schedule": schema.LrScheduleSection(learning_rate=0.02, warmup_steps=2, lr_end=0.002),
        "monitor_config": schema.MonitorSection(tensorboard=False),
        "optimizer": schema.OptimizerSection(weight_decay=0.1),
        "parallel_config": schema.ParallelSection(),
        "precision": schema.PrecisionSection(),
        "recompute_config": schema.RecomputeSection(),
        "runner_wrapper": schema.RunnerWrapperSection(),
        "train_dataset": schema.DatasetSection(),
        "validation": schema.ValidationSection(),
        "model": schema.ModelSection(GlyphConfig(8, 4, 16, 2, 1), frozen=tuple(frozen)),
        "objective": schema.GlyphAlignmentOptions(),
        "checkpoint": schema.CheckpointSection(save_checkpoint_steps=save),
        **sections,
    }
    return recipe.Recipe(
        output_dir=str(output_dir), context=schema.ContextSection(mode=mode),
        runner_config=schema.RunnerSection(global_batch_size=batch, gradient_accumulation_steps=accumulation,
                                           stop_step=steps),
        ema=schema.EmaSection(ema), **values)


def make_trainer(settings, objective=None, held_out=None, dataset=None, **options):
    """A Trainer of the fake objective, not yet run; options: of the Trainer."""
    from mindglm.train.loop import Trainer

    return Trainer(settings, recipe.to_yaml(settings), objective or Objective(), dataset or Dataset(), held_out,
                   **options)


def weights(trainer) -> dict[str, np.ndarray]:
    """Copies of the model's parameters."""
    return {name: parameter.asnumpy().copy() for name, parameter in trainer.parameters.items()}


def tensors(*arrays):
    return [Tensor(np.asarray(array)) for array in arrays]
