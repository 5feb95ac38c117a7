"""The recipes that are shipped, and how a test makes one small enough to run on a CPU in seconds."""

import dataclasses
import json
from pathlib import Path

from mindglm import recipe
from mindglm.checkpoint.released import component_config
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.glyph_encoder import config as glyph_config
from mindglm.models.vae import config as vae_config
from tests.golden import REPO

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SIZES = ("64x64", "96x64", "64x96")
BATCH, STEPS, LAYERS = 4, 2, 8

_STRUCTURES = {"ArGenerator": ("vision_language_encoder", ar_config), "DiTDecoder": ("transformer", dit_config),
               "VAE": ("vae", vae_config), "GlyphEncoder": ("text_encoder", glyph_config)}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nano_scale(path: Path, work: Path) -> list[str]:
    """Overrides under which a recipe runs as one process on the tiny model of tests/golden.

    Objective, options, buckets, order, optimizer, schedule of rates, average, recomputation and precision stay as
    they are; widths, pictures, batch and steps shrink, and the rate rises so that two steps show in bfloat16. Folders
    that a recipe names lie below `work`: what is at `pretrained/` is the tiny released folder, what is at `output/`
    was written by another recipe.
    """
    loaded = recipe.load(path)
    kind = loaded.model_type
    component, module = _STRUCTURES[kind]
    structure = dataclasses.asdict(module.from_hf(component_config(REPO, component)))
    start = loaded.pretrained_model_dir
    if start is not None:
        start = work / start if start.startswith("output/") else REPO
    overrides = [
        f"model.model_config={json.dumps({'type': kind, **structure})}",
        f"output_dir={work / loaded.output_dir}", f"pretrained_model_dir={start or ''}",
        f"runner_config={{global_batch_size: {BATCH}, gradient_accumulation_steps: 2, stop_step: {STEPS}}}",
        "context={device_target: auto, mode: 1}", "parallel_config.data_parallel=1", "parallel_config.pipeline_stage=1",
        "parallel_config.pipeline_chunks=1", "parallel_config.micro_batch_num=1", "lr_schedule.warmup_steps=1",
        "lr_schedule.learning_rate=0.01", "checkpoint.save_checkpoint_steps=1",
        "validation={eval_step_interval: 1, eval_samples: 2}",
        f"monitor_config.sample_step_interval={STEPS if loaded.monitor_config.sample_step_interval else 0}",
        "monitor_config.tensorboard=false"]
    if loaded.recompute_config.select_recompute:
        overrides.append("recompute_config.select_recompute=[0]")  # of the two layers that the tiny model has
    if loaded.train_dataset.dataset_dir is not None:
        pixels = loaded.trainer.type in ("vae_reconstruction", "vq_reconstruction")
        overrides += [f"train_dataset.dataset_dir={work / ('pixels' if pixels else 'dataset')}",
                      f"train_dataset.buckets=[{', '.join(SIZES[:len(loaded.train_dataset.buckets)])}]"]
    return overrides


def piped(path: Path, work: Path) -> list[str]:
    """As nano_scale, with two of the recipe's pipeline stages and its schedule, deep enough to be cut; random start."""
    loaded = recipe.load(path)
    parallel, key = loaded.parallel_config, "num_layers" if loaded.model_type == "DiTDecoder" else (
        "text_config.num_hidden_layers")
    return [*nano_scale(path, work), "pretrained_model_dir=", f"model.model_config.{key}={LAYERS}",
            "runner_config.gradient_accumulation_steps=1", "parallel_config.micro_batch_num=2",
            "parallel_config.pipeline_stage=2", f"parallel_config.pipeline_chunks={parallel.pipeline_chunks}"]
