"""One rank of tests/parallel/test_same_run.py: trains tiny models in layouts, one after the other.

A case is a dict: task (ar | dit), and optionally dp, pp, zero, strict, schedule, chunks, recompute, ema, reduce, micro,
layers, steps, save, until (drop the run after that step, as a kill would) and folder. Runs write to <folder>/<name of
the case>; every case of a call needs the same number of processes.
"""

import contextlib
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

STEPS, BATCH, MICRO = 30, 8, 2
"""Optimizer steps; samples of a step; samples of a micro-batch, in every layout."""


class Dropped(Exception):
    """The run is given up here."""


def name_of(case: dict) -> str:
    if "folder" in case:
        return case["folder"]
    marks = [key if value is True else f"{key}{value}" for key, value in case.items() if key != "task" and value]
    return "-".join([case["task"], *marks])


class Samples:
    """Samples of a task, functions of their number; AR prompts and DiT glyphs differ in length."""

    def __init__(self, task: str, count: int = 20):
        self._task, self._count = task, count

    def __len__(self):
        return self._count

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([i, 7])
        codes = {"id": str(i), "index": i, "large_codes": rng.integers(0, 16, (2, 2)).astype(np.int32)}
        if self._task == "ar":
            prompt = rng.integers(20, 40, 2 + 3 * i % 13)
            return {**codes, "prompt_ids": np.append(prompt, 16).astype(np.int32),
                    "preview_codes": rng.integers(0, 16, (1, 1)).astype(np.int32)}
        return {**codes, "latents": rng.standard_normal((4, 8, 8), dtype=np.float32),
                "glyph": rng.standard_normal((1 + 3 * i % 10, 12), dtype=np.float32),
                "empty_glyph": np.ones((1, 12), np.float32), "target_size": np.array([64, 64], np.float32),
                "crop": np.zeros(2, np.float32)}


def structure(task: str, layers: int):
    """(model_config, objective options, trainer section)."""
    from mindglm.recipe import models, schema

    if task == "ar":
        text = models.TextConfig(40, 20, 32, 48, layers, 4, 2, mrope_section=(1, 1, 0))
        config = models.ArGeneratorConfig(text, models.VisionConfig(1, 16, 2, 32, 64), models.VQConfig(16, 8, 16), 16,
                                          17, 38, 39)
        return config, schema.ArNextTokenOptions(pad_to_multiple=4), schema.TrainerSection("ar_next_token", "tiny")
    config = models.DiTConfig(layers, 2, 16, 4, 4, 12, 16, 8, 16)
    return config, schema.FlowMatchingOptions(glyph_pad_to=4), schema.TrainerSection("flow_matching", "tiny")


def recipe_of(case: dict, folder: Path):
    from mindglm.recipe import schema
    from tests.train import fake

    dp, pp = case.get("dp", 1), case.get("pp", 1)
    micro_batches = BATCH // (dp * case.get("micro", MICRO))
    config, options, trainer = structure(case["task"], case.get("layers", 4))
    return fake.make_recipe(
        folder / name_of(case), steps=case.get("steps", STEPS), batch=BATCH, save=case.get("save", 1000),
        accumulation=1 if pp > 1 else micro_batches, ema=case.get("ema", 0.0), trainer=trainer,
        lr_schedule=schema.LrScheduleSection(learning_rate=0.001, warmup_steps=2),
        parallel_config=schema.ParallelSection(
            dp, pipeline_stage=pp, micro_batch_num=micro_batches if pp > 1 else 1,
            optimizer_shard=case.get("zero", False), pipeline_schedule=case.get("schedule", "1f1b"),
            pipeline_chunks=case.get("chunks", 1)),
        recompute_config=schema.RecomputeSection(case.get("recompute", False)),
        precision=schema.PrecisionSection(reduce_dtype=case.get("reduce", "float32")),
        monitor_config=schema.MonitorSection(tensorboard=False, weights_hash_interval=case.get("hash", 100)),
        strict_numerics=case.get("strict", False), model=schema.ModelSection(config), objective=options,
        validation=schema.ValidationSection(eval_step_interval=case.get("steps", STEPS) // 2, eval_samples=5))


def trainer_of(case: dict, folder: Path):
    """The Trainer of a case, not yet run; made as mindglm.train.trainer makes it."""
    from mindglm import recipe
    from mindglm.train import layout, objectives, pipeline
    from mindglm.train.loop import Trainer

    settings, data = recipe_of(case, folder), Samples(case["task"])
    here = layout.here(settings.parallel_config)
    objective = objectives.build(settings, pipeline.parts(settings, here, data))
    return Trainer(settings, recipe.to_yaml(settings), objective, data, Samples(case["task"], 7),
                   (pipeline.table(settings, here, data),), here)


def train(case: dict, folder: Path):
    """Run a case; returns its Trainer."""
    trainer = trainer_of(case, folder)
    check = trainer._due

    def due():
        check()
        if trainer.counters.step == case.get("until"):
            raise Dropped

    trainer._due = due
    with contextlib.suppress(Dropped):
        trainer.fit()
    return trainer


def outcome(case: dict, folder: Path) -> dict:
    """What a run left: its curves, and the SHA-256 of its checkpoint's weights and optimizer state."""
    from mindglm.checkpoint import store

    lines = [json.loads(text) for text in (folder / name_of(case) / "metrics.jsonl").read_text().splitlines()]
    curves = {key: np.array([line[key] for line in lines if key in line], float)
              for key in ("loss", "grad_norm", "validation_loss")}
    loaded = store.load(folder / name_of(case) / "checkpoint")
    found = {}
    for kind, tensors in loaded.tensors.items():
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
        found[kind] = digest.hexdigest()
    return {**curves, "sha": found, "step": loaded.step, "tensors": loaded.tensors}


if __name__ == "__main__":
    from mindglm.parallel import transport

    transport.init()
    from mindglm import ops  # noqa: F401  (CPU launch mode)

    for listed in json.loads(sys.argv[2]):
        trained = train(listed, Path(sys.argv[1]))
        whole = trained.component_tensors()  # what an export would get, on rank 0
        if trained.leads and "until" not in listed:
            saved = outcome(listed, Path(sys.argv[1]))["tensors"]["model"]
            same = [name for name in saved if whole[name].tobytes() == saved[name].tobytes()]
            assert set(same) == set(whole) == set(saved), f"{name_of(listed)}: export and checkpoint differ"
    transport.finish()
