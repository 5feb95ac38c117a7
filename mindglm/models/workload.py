"""From a recipe to what the planner counts with (`mindglm.plan.workload`): the one place that knows both.

No MindSpore. What a recipe leaves open, the sizes of its pictures when its dataset is not there, prompts and glyphs, is
assumed, and said in `Workload.notes`.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from mindglm.errors import UserError
from mindglm.models.ar_generator import costs as ar_costs
from mindglm.models.ar_generator import flops as ar_flops
from mindglm.models.ar_generator.processor import target_grids
from mindglm.models.dit_decoder import costs as dit_costs
from mindglm.models.dit_decoder import flops as dit_flops
from mindglm.plan.workload import Sample, Workload
from mindglm.recipe import sizes as sizes_of

DEFAULT_SIZE = (1024, 1024)
PROMPT_TOKENS, GLYPH_TOKENS = 64, 32
PLANNED = ("ar_next_token", "flow_matching")
LATENT_PIXELS = 8


def of_recipe(recipe, form: str, sizes: Sequence[tuple[int, int, float]] = (), prompt_tokens: int = PROMPT_TOKENS,
              glyph_tokens: int = GLYPH_TOKENS) -> Workload:
    """What a recipe's run asks for.

    Args:
        form: "fused" (Ascend's kernels, bfloat16 unless the recipe says float32) | "composed" (CPU, float32).
        sizes: (height, width, share) of the pictures; (): those of the recipe's dataset.
        prompt_tokens, glyph_tokens: of a caption; the dataset holds both, and they vary.
    Raises UserError for a recipe whose model is not cut into units.
    """
    if recipe.trainer.type not in PLANNED:
        raise UserError(f"trainer.type {recipe.trainer.type} is not planned: only {' and '.join(PLANNED)} train models "
                        "that are large and cut into units")
    notes: list[str] = []
    weight_bytes = 4 if form == "composed" or recipe.precision.params_dtype == "float32" else 2
    sizes = sizes or _sizes(recipe, notes)
    if recipe.model_type == "ArGenerator":
        samples = [_ar_sample(recipe, *size, form, weight_bytes, prompt_tokens) for size in sizes]
        notes.append(f"prompts of {prompt_tokens} tokens (--prompt-tokens)")
    else:
        samples = [_dit_sample(recipe, *size, form, weight_bytes, glyph_tokens) for size in sizes]
        notes.append(f"{glyph_tokens} glyph tokens a sample (--glyph-tokens)")
    return Workload(
        samples=_merged(samples), global_batch=recipe.runner_config.global_batch_size,
        steps=recipe.runner_config.stop_step, weight_bytes=weight_bytes,
        reduce_bytes=2 if recipe.precision.reduce_dtype == "bfloat16" else 4, no_decay=recipe.optimizer.no_decay,
        keeps_average=recipe.ema.decay > 0, compiled=recipe.context.mode == 0,
        frozen=bool(recipe.model.frozen), strict=recipe.strict_numerics,
        checkpoint_interval=recipe.checkpoint.save_checkpoint_steps,
        checkpoints_kept=recipe.checkpoint.keep_checkpoint_max, notes=tuple(notes))


def _sizes(recipe, notes: list[str]) -> list[tuple[int, int, float]]:
    """(height, width, share) by the recipe's dataset where it is, else by its buckets, else one usual size."""
    folder = recipe.train_dataset.dataset_dir
    index = Path(folder, "index.json") if folder else None
    named = recipe.train_dataset.sizes
    if index is not None and index.is_file():
        return _sizes_of_dataset(_buckets(index), named, folder, notes)
    if named:
        notes.append(f"the {len(named)} sizes of train_dataset.buckets equally often")
        return [(height, width, 1 / len(named)) for height, width in named]
    height, width = DEFAULT_SIZE
    notes.append(f"pictures of {width}x{height}: {folder} is not here (--size says otherwise)")
    return [(height, width, 1.0)]


def _buckets(path: Path) -> list[dict]:
    """Height, width and number of training pictures of each size of a dataset. UserError for a file of another kind."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        buckets = index.get("buckets") or [{"height": index["height"], "width": index["width"], "train": 1}]
        for bucket in buckets:
            size, count = (bucket["height"], bucket["width"]), bucket["train"]
            if not all(type(number) is int and number >= 0 for number in (*size, count)) or sizes_of.fault(size):
                raise ValueError(f"a size {bucket}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected what `mindglm prepare` writes, but it is damaged or of another kind "
                        f"({type(error).__name__}: {error}); prepare the dataset again, or plan with --size") from error
    return buckets


def _sizes_of_dataset(buckets: list[dict], named, folder: str, notes: list[str]) -> list[tuple[int, int, float]]:
    """named: the sizes that the recipe takes of it; (): all."""
    taken = [bucket for bucket in buckets
             if bucket["train"] and (not named or (bucket["height"], bucket["width"]) in named)]
    total = sum(bucket["train"] for bucket in taken)
    if not total:
        names = sorted(f"{bucket['width']}x{bucket['height']}" for bucket in buckets)
        raise UserError(f"{folder} holds no training picture of the sizes that the recipe names; expected some of "
                        f"{', '.join(names)}")
    notes.append(f"sizes of the pictures in {folder}")
    return [(bucket["height"], bucket["width"], bucket["train"] / total) for bucket in taken]


def _merged(samples: list[Sample]) -> tuple[Sample, ...]:
    """Sizes that cost the same as one, which goes by the name of the first."""
    alike: dict[tuple, list[Sample]] = {}
    for sample in samples:
        alike.setdefault((sample.tokens, sample.host_normals), []).append(sample)
    return tuple(dataclasses.replace(
        first, share=sum(sample.share for sample in (first, *others)),
        title=first.title + (f" and {len(others)} more" if others else "")) for first, *others in alike.values())


def _ar_sample(recipe, height: int, width: int, share: float, form: str, weight_bytes: int, prompt: int) -> Sample:
    (rows, columns), (preview_rows, preview_columns) = target_grids(height, width)
    codes = rows * columns + (preview_rows * preview_columns if recipe.objective.progressive else 0)
    multiple, config = recipe.objective.pad_to_multiple, recipe.model.model_config
    length = math.ceil((prompt + codes) / multiple) * multiple
    return Sample(f"{width}x{height}", share, length, ar_costs.units(config, length, form, weight_bytes),
                  tuple(ar_flops.unit_flops(config, prompt + codes)), host_bytes=4 * (prompt + codes), host_normals=0)


def _dit_sample(recipe, height: int, width: int, share: float, form: str, weight_bytes: int, glyphs: int) -> Sample:
    config, multiple = recipe.model.model_config, recipe.objective.glyph_pad_to
    tokens = height * width // (LATENT_PIXELS * config.patch_size) ** 2
    padded = math.ceil(glyphs / multiple) * multiple
    latents = config.in_channels * height * width // LATENT_PIXELS**2
    host = 4 * (latents + glyphs * config.text_embed_dim + height * width // 32**2)
    return Sample(f"{width}x{height}", share, tokens + padded,
                  dit_costs.units(config, tokens, padded, form, weight_bytes),
                  tuple(dit_flops.unit_flops(config, tokens, glyphs)), host_bytes=host, host_normals=latents)
