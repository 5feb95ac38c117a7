"""What a recipe's values must satisfy among themselves: each rule yields (dotted key, given, expected).

A rule that touches a value which is missing or of the wrong type is passed over: that mistake has been reported, and
the other rules still speak.
"""

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
    Recipe,
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
    ParallelSection: {"data_parallel": COUNT},
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


def _not_yet(parallel: Part) -> Violations:
    for field in fields(ParallelSection):
        value = parallel.values.get(field.name)
        if field.name != "data_parallel" and value is not None and value != field.default:
            only = shown(field.default)
            yield field.name, value, f"{only}: other values are not yet supported; set it to {only} or leave it out"


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
    ParallelSection: (_not_yet,),
    OptimizerSection: (_betas,),
    EmaSection: (_ema_decay,),
    LrScheduleSection: (_lr_total_steps, _lr_end),
    ModelSection: (_empty_names,),
    CheckpointSection: (_prefix,),
    **STRUCTURE_RULES,
}


# ---- several sections; keys are dotted from the top


def _batch_divides(runner: RunnerSection, parallel: ParallelSection) -> Violations:
    ranks, micro_batches = parallel.data_parallel, runner.gradient_accumulation_steps
    if min(ranks, micro_batches) >= 1 and runner.global_batch_size % (ranks * micro_batches):
        names = f"data_parallel {ranks} * gradient_accumulation_steps {micro_batches}"
        expected = multiple(runner.global_batch_size, names, ranks * micro_batches)
        yield "runner_config.global_batch_size", runner.global_batch_size, expected


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


CROSS_RULES: tuple[tuple[tuple[str, ...], Callable[..., Violations]], ...] = (
    (("runner_config", "parallel_config"), _batch_divides),
    (("lr_schedule", "runner_config"), _warmup_fits),
    (("trainer", "model.model_config"), _model_fits_trainer),
    (("trainer", "train_dataset"), _dataset_given),
    (("objective", "model.model_config"), _crop_fits_vae),
)
