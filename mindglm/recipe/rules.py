"""What a recipe's values must satisfy among themselves: each rule yields (dotted key, given, expected).

A rule that touches a value which is missing or of the wrong type is passed over: that mistake has been reported, and
the other rules still speak.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

from mindglm.recipe.models import VAEConfig
from mindglm.recipe.schema import (
    MODEL_TYPES,
    TRAINED_MODEL,
    ArNextTokenOptions,
    CheckpointSection,
    DatasetSection,
    EmaSection,
    FlowMatchingOptions,
    GlyphAlignmentOptions,
    LrScheduleSection,
    ModelSection,
    MonitorSection,
    OptimizerSection,
    ParallelSection,
    PrecisionSection,
    Recipe,
    RecomputeSection,
    RunnerSection,
    RunnerWrapperSection,
    TrainerSection,
    VaeReconstructionOptions,
    ValidationSection,
    VqReconstructionOptions,
)
from mindglm.recipe.structure_rules import STRUCTURE_RULES, Violations, multiple


class Broken(Exception):
    """A rule asked for a value that is missing or wrong."""


@dataclass(frozen=True)
class Part:
    """The fields of one section as far as they are right; the stand-in of `cls` for rules.

    Reads like an instance of `cls`, properties included; a field that is missing or wrong raises Broken.
    """

    cls: type
    values: Mapping[str, object]

    def __getattr__(self, name: str) -> object:
        if name in self.values:
            return self.values[name]
        derived = self.cls.__dict__.get(name)
        if isinstance(derived, property):
            return derived.fget(self)
        raise Broken(name)


def violations(parts: Mapping[str, Part]) -> Iterator[tuple[str, str]]:
    """(dotted key, message) of each broken rule over `parts`, the sections by dotted path ("" is the recipe itself)."""
    for path, part in parts.items():
        prefix = f"{path}." if path else ""
        checks = [_ranges, *PART_RULES.get(part.cls, ())]
        if path.startswith("model.model_config"):
            checks.append(_sizes_positive)
        for rule in checks:
            yield from _spoken(prefix, rule, part)
    for paths, rule in CROSS_RULES:
        if all(path in parts for path in paths):
            yield from _spoken("", rule, *(parts[path] for path in paths))


def _spoken(prefix: str, rule: Callable[..., Violations], *parts: Part) -> Iterator[tuple[str, str]]:
    try:
        for key, given, expected in rule(*parts):
            yield prefix + key, f"given {shown(given)}, expected {expected}"
    except Broken:
        return


def shown(value: object) -> str:
    """A scalar as a recipe writes it."""
    if value is None:
        return "nothing (null)"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- single values


@dataclass(frozen=True)
class Range:
    """Bounds of a number."""

    low: float
    low_allowed: bool = True
    high: float | None = None


COUNT, FROM_ZERO, ABOVE_ZERO, CHANCE = Range(1), Range(0), Range(0, low_allowed=False), Range(0, high=1)

RANGES: dict[type, dict[str, Range]] = {
    Recipe: {"seed": Range(0, high=2**63 - 1)},
    RunnerSection: {"global_batch_size": COUNT, "stop_step": COUNT, "gradient_accumulation_steps": COUNT},
    ParallelSection: {"data_parallel": COUNT, "pipeline_stage": COUNT, "micro_batch_num": COUNT,
                      "pipeline_chunks": COUNT},
    OptimizerSection: {"eps": ABOVE_ZERO, "weight_decay": FROM_ZERO},
    LrScheduleSection: {"learning_rate": ABOVE_ZERO, "lr_end": FROM_ZERO, "warmup_steps": FROM_ZERO},
    RunnerWrapperSection: {"max_grad_norm": ABOVE_ZERO, "max_skipped_steps": FROM_ZERO},
    EmaSection: {"warmup_steps": FROM_ZERO},
    CheckpointSection: {"save_checkpoint_steps": COUNT, "keep_checkpoint_max": COUNT},
    ValidationSection: {"eval_step_interval": FROM_ZERO, "eval_samples": COUNT},
    MonitorSection: {"log_interval": COUNT, "sample_step_interval": FROM_ZERO},
    ArNextTokenOptions: {"preview_weight": FROM_ZERO, "pad_to_multiple": COUNT, "prompt_dropout": CHANCE},
    FlowMatchingOptions: {
        "condition_dropout": CHANCE,
        "glyph_dropout": CHANCE,
        "code_corruption": CHANCE,
        "glyph_pad_to": COUNT,
    },
    VaeReconstructionOptions: {"crop_size": COUNT, "l1_weight": FROM_ZERO, "kl_weight": FROM_ZERO},
    VqReconstructionOptions: {
        "commitment_beta": FROM_ZERO,
        "codebook_weight": FROM_ZERO,
        "reseed_interval": FROM_ZERO,
        "reseed_until": FROM_ZERO,
    },
    GlyphAlignmentOptions: {"max_bytes": COUNT, "bitmap_size": COUNT},
}


def _ranges(part: Part) -> Violations:
    for key, bounds in RANGES.get(part.cls, {}).items():
        value = part.values.get(key)
        if value is None:  # broken
            continue
        too_low = value < bounds.low or value == bounds.low and not bounds.low_allowed
        if too_low or bounds.high is not None and value > bounds.high:
            expected = f"at least {bounds.low}" if bounds.low_allowed else f"more than {bounds.low}"
            yield key, value, expected + (f" and at most {bounds.high}" if bounds.high is not None else "")


def _sizes_positive(part: Part) -> Violations:
    """Sizes, counts and constants of a structure are above 0; token ids have rules of their own."""
    for field in fields(part.cls):
        value = part.values.get(field.name)
        if type(value) in (int, float) and value <= 0 and not field.name.endswith("_token_id"):
            yield field.name, value, "more than 0"


# ---- one section


NOT_YET = ("model_parallel", "context_parallel")


def _not_yet(parallel: Part) -> Violations:
    for field in fields(ParallelSection):
        value = parallel.values.get(field.name)
        if field.name in NOT_YET and value is not None and value != field.default:
            only = shown(field.default)
            yield field.name, value, f"{only}: other values are not yet supported; set it to {only} or leave it out"


def _pipeline(parallel: ParallelSection) -> Violations:
    stages, chunks = parallel.pipeline_stage, parallel.pipeline_chunks
    if parallel.micro_batch_num > 1 and stages == 1:
        yield "micro_batch_num", parallel.micro_batch_num, (
            "1 with pipeline_stage 1; runner_config.gradient_accumulation_steps cuts a batch without a pipeline")
    if chunks > 1 and parallel.pipeline_schedule != "interleaved":
        yield "pipeline_chunks", chunks, f"1 with pipeline_schedule {parallel.pipeline_schedule}, or interleaved"
    if parallel.pipeline_cuts and (len(parallel.pipeline_cuts) != stages * chunks or min(parallel.pipeline_cuts) < 1):
        yield "pipeline_cuts", list(parallel.pipeline_cuts), (
            f"{stages * chunks} counts of at least 1, one for each of pipeline_stage * pipeline_chunks parts")


def _recompute(recompute: RecomputeSection) -> Violations:
    if recompute.recompute and recompute.select_recompute:
        yield "select_recompute", list(recompute.select_recompute), "nothing beside recompute: true, which takes all"
    if min(recompute.select_recompute, default=0) < 0:
        yield "select_recompute", list(recompute.select_recompute), "layer numbers, from 0"


def _one_compute_dtype(precision: PrecisionSection) -> Violations:
    if precision.compute_dtype not in ("auto", precision.params_dtype):
        expected = f"auto or params_dtype ({precision.params_dtype}): the models compute in the dtype of their weights"
        yield "compute_dtype", precision.compute_dtype, (
            f"{expected}; bfloat16 weights have float32 masters in the optimizer all the same")


def _betas(optimizer: OptimizerSection) -> Violations:
    for i, beta in enumerate(optimizer.betas):
        if not 0 <= beta < 1:
            yield f"betas[{i}]", beta, "at least 0 and less than 1"


def _ema_decay(ema: EmaSection) -> Violations:
    if not 0 <= ema.decay < 1:
        yield "decay", ema.decay, "at least 0 (off) and less than 1, usually 0.99 to 0.9999"


def _lr_total_steps(schedule: LrScheduleSection) -> Violations:
    if schedule.total_steps != -1 and schedule.total_steps < 1:
        yield "total_steps", schedule.total_steps, "-1 (as runner_config.stop_step) or at least 1"


def _lr_end(schedule: LrScheduleSection) -> Violations:
    if schedule.lr_end > schedule.learning_rate:
        yield "lr_end", schedule.lr_end, f"at most learning_rate ({schedule.learning_rate})"


def _empty_names(section: Part) -> Violations:
    for key in ("frozen", "fresh"):
        if "" in section.values.get(key, ()):
            yield key, "an empty text", "beginnings of parameter names; every name begins with an empty one"


def _prefix(section: CheckpointSection) -> Violations:
    if not section.prefix or "/" in section.prefix:
        yield "prefix", repr(section.prefix), "the beginning of a file name, without '/'"


def _output_dir(recipe: Recipe) -> Violations:
    if not recipe.output_dir:
        yield "output_dir", "an empty text", "a folder"


PART_RULES: dict[type, tuple[Callable[..., Violations], ...]] = {
    Recipe: (_output_dir,),
    ParallelSection: (_not_yet, _pipeline),
    RecomputeSection: (_recompute,),
    PrecisionSection: (_one_compute_dtype,),
    OptimizerSection: (_betas,),
    EmaSection: (_ema_decay,),
    LrScheduleSection: (_lr_total_steps, _lr_end),
    ModelSection: (_empty_names,),
    CheckpointSection: (_prefix,),
    **STRUCTURE_RULES,
}


# ---- several sections; keys are dotted from the top


def _batch_divides(runner: RunnerSection, parallel: ParallelSection) -> Violations:
    factors = {"data_parallel": parallel.data_parallel,
               "gradient_accumulation_steps": runner.gradient_accumulation_steps}
    if parallel.micro_batch_num != 1:
        factors["micro_batch_num"] = parallel.micro_batch_num
    of = math.prod(factors.values())
    if min(factors.values()) >= 1 and runner.global_batch_size % of:
        expected = multiple(runner.global_batch_size, " * ".join(f"{name} {n}" for name, n in factors.items()), of)
        yield "runner_config.global_batch_size", runner.global_batch_size, expected


STAGED = ("ar_next_token", "flow_matching")


def _stages_can_run(trainer: TrainerSection, context: Part, parallel: ParallelSection,
                    recompute: RecomputeSection, model: ModelSection, monitor: MonitorSection) -> Violations:
    """What goes with a model that runs as stages: in a pipeline, or to recompute."""
    splits = parallel.pipeline_stage > 1 or parallel.pipeline_chunks > 1
    if not splits and not recompute.recompute and not recompute.select_recompute:
        return
    key = "parallel_config.pipeline_stage" if splits else "recompute_config"
    if trainer.type not in STAGED:
        yield key, parallel.pipeline_stage if splits else "recompute", (
            f"nothing of the kind for {trainer.type}: only {' and '.join(STAGED)} have models cut into stages")
    if context.mode == 0:
        yield "context.mode", 0, f"1 with {key}: stages run operation by operation"
    if model.frozen:
        yield "model.frozen", list(model.frozen), f"nothing: frozen parts are not yet supported with {key}"
    if monitor.sample_step_interval:
        yield "monitor_config.sample_step_interval", monitor.sample_step_interval, (
            f"0 with {key}: sample pictures need the whole model in one piece")


def _warmup_fits(schedule: LrScheduleSection, runner: RunnerSection) -> Violations:
    follows = schedule.total_steps == -1
    total = runner.stop_step if follows else schedule.total_steps
    if schedule.warmup_steps >= total >= 1:
        source = "runner_config.stop_step" if follows else "lr_schedule.total_steps"
        yield "lr_schedule.warmup_steps", schedule.warmup_steps, f"less than {source} ({total})"


def _model_fits_trainer(trainer: TrainerSection, model: Part) -> Violations:
    expected = TRAINED_MODEL[trainer.type]
    given = next(name for name, cls in MODEL_TYPES.items() if cls is model.cls)
    if given != expected:
        others = " or ".join(name for name, kind in TRAINED_MODEL.items() if kind == given)
        yield "model.model_config.type", given, f"{expected} for {trainer.type}; {given} goes with {others}"


def _dataset_given(trainer: TrainerSection, dataset: DatasetSection) -> Violations:
    key, folder = "train_dataset.dataset_dir", dataset.dataset_dir
    if trainer.type == "glyph_alignment" and folder is not None:
        yield key, repr(folder), "null: the words of glyph_alignment are procedural; leave it out"
    if trainer.type != "glyph_alignment" and not folder:
        yield key, folder or None, "a folder written by `mindglm prepare`"


def _crop_fits_vae(options: Part, config: Part) -> Violations:
    if (
        options.cls is VaeReconstructionOptions
        and config.cls is VAEConfig
        and options.crop_size % config.spatial_factor
    ):
        expected = multiple(options.crop_size, "the VAE's downsampling", config.spatial_factor)
        yield "objective.crop_size", options.crop_size, expected


def _device_has_dtype(context: Part, precision: PrecisionSection) -> Violations:
    if context.device_target == "CPU" and precision.params_dtype == "bfloat16":
        yield "precision.params_dtype", "bfloat16", (
            "float32 or auto on context.device_target CPU: MindSpore's CPU backend has no bfloat16 kernels for matmul, "
            "softmax and sums")


def _strict_can_be_kept(recipe: Part, context: Part, precision: PrecisionSection) -> Violations:
    if not recipe.strict_numerics:
        return
    if context.device_target == "Ascend":
        yield "strict_numerics", True, "false on context.device_target Ascend, where equal bits have not been measured"
    if context.mode == 0:
        yield "context.mode", 0, "1 with strict_numerics: a compiled graph orders its sums anew in every layout"
    if precision.reduce_dtype != "float32":
        yield "precision.reduce_dtype", precision.reduce_dtype, "float32 with strict_numerics"


CROSS_RULES: tuple[tuple[tuple[str, ...], Callable[..., Violations]], ...] = (
    (("runner_config", "parallel_config"), _batch_divides),
    (("trainer", "context", "parallel_config", "recompute_config", "model", "monitor_config"), _stages_can_run),
    (("context", "precision"), _device_has_dtype),
    (("", "context", "precision"), _strict_can_be_kept),
    (("lr_schedule", "runner_config"), _warmup_fits),
    (("trainer", "model.model_config"), _model_fits_trainer),
    (("trainer", "train_dataset"), _dataset_given),
    (("objective", "model.model_config"), _crop_fits_vae),
)
