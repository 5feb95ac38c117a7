"""What a recipe's values must satisfy among themselves: each rule yields (dotted key, given, expected).

A rule that touches a value which is missing or of the wrong type is passed over: that mistake has been reported, and
the other rules still speak. So a rule makes one check: what it says must not hang on values that it can do without.
RUN_RULES hold for a recipe that is to be trained, not for one that is only planned.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields

from mindglm.recipe import sizes
from mindglm.recipe.models import ArGeneratorConfig, DiTConfig, TextConfig, VAEConfig, VisionConfig
from mindglm.recipe.ranges import range_of
from mindglm.recipe.schema import (
    MODEL_TYPES,
    TRAINED_MODEL,
    ArNextTokenOptions,
    CheckpointSection,
    DatasetSection,
    LrScheduleSection,
    ModelSection,
    ParallelSection,
    PrecisionSection,
    Recipe,
    RecomputeSection,
    RunnerSection,
    TrainerSection,
    VaeReconstructionOptions,
    ValidationSection,
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
    """Sections below are Parts too."""
    lists: Mapping[str, Mapping[int, object]] = field(default_factory=dict)
    """Of lists with a wrong element those that are right, by their place."""

    def elements(self, name: str) -> Mapping[int, object]:
        """The right elements of a list by their place."""
        return self.lists[name] if name in self.lists else dict(enumerate(getattr(self, name)))

    def __getattr__(self, name: str) -> object:
        if name in self.values:
            return self.values[name]
        derived = self.cls.__dict__.get(name)
        if isinstance(derived, property):
            return derived.fget(self)
        raise Broken(name)


def violations(parts: Mapping[str, Part], to_plan: bool = False) -> Iterator[tuple[str, str]]:
    """(dotted key, message) of each broken rule over `parts`, the sections by dotted path ("" is the recipe itself).

    to_plan: without RUN_RULES.
    """
    for path, part in parts.items():
        prefix = f"{path}." if path else ""
        to_run = () if to_plan else RUN_RULES.get(part.cls, ())
        for rule in (_ranges, *PART_RULES.get(part.cls, ()), *to_run):
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


def _ranges(part: Part) -> Violations:
    for key, value in {**part.values, **part.lists}.items():
        bounds = range_of(part.cls, key)
        if bounds is None or value is None:
            continue
        several = type(value) is tuple or key in part.lists
        numbers = {f"{key}[{i}]": n for i, n in part.elements(key).items()} if several else {key: value}
        for place, number in numbers.items():
            if number not in bounds:
                yield place, number, str(bounds)


# ---- one section


NOT_YET = ("model_parallel", "context_parallel")


def _not_yet(parallel: Part) -> Violations:
    for known in fields(ParallelSection):
        value = parallel.values.get(known.name)
        if known.name in NOT_YET and value is not None and value != known.default:
            only = shown(known.default)
            yield known.name, value, f"{only}: other values are not yet supported; set it to {only} or leave it out"


def _micro_batches_need_stages(parallel: ParallelSection) -> Violations:
    if parallel.micro_batch_num > 1 and parallel.pipeline_stage == 1:
        yield "micro_batch_num", parallel.micro_batch_num, (
            "1 with pipeline_stage 1; runner_config.gradient_accumulation_steps cuts a batch without a pipeline")


def _chunks_need_their_schedule(parallel: ParallelSection) -> Violations:
    chunks, schedule = parallel.pipeline_chunks, parallel.pipeline_schedule
    if chunks > 1 and schedule != "interleaved":
        yield "pipeline_chunks", chunks, f"1 with pipeline_schedule {schedule}, or interleaved"


def _a_cut_for_each_part(parallel: ParallelSection) -> Violations:
    stages, chunks = parallel.pipeline_stage, parallel.pipeline_chunks
    if parallel.pipeline_cuts and len(parallel.pipeline_cuts) != stages * chunks:
        yield "pipeline_cuts", list(parallel.pipeline_cuts), (
            f"{stages * chunks} counts, one for each of pipeline_stage * pipeline_chunks parts")


def _recompute(recompute: RecomputeSection) -> Violations:
    if recompute.recompute and recompute.select_recompute:
        yield "select_recompute", list(recompute.select_recompute), "nothing beside recompute: true, which takes all"


def _one_compute_dtype(precision: PrecisionSection) -> Violations:
    if precision.compute_dtype not in ("auto", precision.params_dtype):
        expected = f"auto or params_dtype ({precision.params_dtype}): the models compute in the dtype of their weights"
        yield "compute_dtype", precision.compute_dtype, (
            f"{expected}; bfloat16 weights have float32 masters in the optimizer all the same")


def _lr_end(schedule: LrScheduleSection) -> Violations:
    if schedule.lr_end > schedule.learning_rate:
        yield "lr_end", schedule.lr_end, f"at most learning_rate ({schedule.learning_rate})"


def _buckets(dataset: Part) -> Violations:
    seen = set()
    for i, text in dataset.elements("buckets").items():
        size = sizes.parse(text)
        expected = "a size in pixels, WIDTHxHEIGHT, such as 1024x1024" if size is None else sizes.fault(size)
        if expected is None and size in seen:
            expected = "each size once"
        seen.add(size)
        if expected is not None:
            yield f"buckets[{i}]", text, expected


def _prefix(section: CheckpointSection) -> Violations:
    if "/" in section.prefix:
        yield "prefix", repr(section.prefix), "the beginning of a file name, without '/'"


PART_RULES: dict[type, tuple[Callable[..., Violations], ...]] = {
    ParallelSection: (_not_yet, _micro_batches_need_stages, _chunks_need_their_schedule, _a_cut_for_each_part),
    RecomputeSection: (_recompute,),
    PrecisionSection: (_one_compute_dtype,),
    LrScheduleSection: (_lr_end,),
    DatasetSection: (_buckets,),
    CheckpointSection: (_prefix,),
    **STRUCTURE_RULES,
}


def _executor_runs_schedule(parallel: ParallelSection) -> Violations:
    if parallel.pipeline_schedule == "zb_h1":
        yield "pipeline_schedule", "zb_h1", (
            "1f1b or interleaved: MindSpore's tape gives the weight gradients apart only by computing the input "
            "gradients twice, which costs more than the bubble that zb_h1 fills; only `mindglm plan` takes it")


RUN_RULES: dict[type, tuple[Callable[..., Violations], ...]] = {ParallelSection: (_executor_runs_schedule,)}
"""What the planner can tell of and the trainer cannot run."""


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


def _runs_as_stages(parallel: ParallelSection, recompute: RecomputeSection) -> str | None:
    """The key by which the model runs as stages: in a pipeline, or to recompute."""
    if parallel.pipeline_stage > 1 or parallel.pipeline_chunks > 1:
        return "parallel_config.pipeline_stage"
    return "recompute_config" if recompute.recompute or recompute.select_recompute else None


def _model_has_stages(parallel: ParallelSection, recompute: RecomputeSection, trainer: TrainerSection) -> Violations:
    key = _runs_as_stages(parallel, recompute)
    if key and trainer.type not in STAGED:
        yield key, "recompute" if key == "recompute_config" else parallel.pipeline_stage, (
            f"nothing of the kind for {trainer.type}: only {' and '.join(STAGED)} have models cut into stages")


def _stages_are_no_graph(parallel: ParallelSection, recompute: RecomputeSection, context: Part) -> Violations:
    if context.mode == 0 and (key := _runs_as_stages(parallel, recompute)):
        yield "context.mode", 0, f"1 with {key}: stages run operation by operation"


def _stages_train_all(parallel: ParallelSection, recompute: RecomputeSection, model: ModelSection) -> Violations:
    if model.frozen and (key := _runs_as_stages(parallel, recompute)):
        yield "model.frozen", list(model.frozen), f"nothing: frozen parts are not yet supported with {key}"


def _layers(config: Part) -> float:
    """Of the model; without bound for one that is not cut into layers."""
    if config.cls is DiTConfig:
        return config.num_layers
    return config.text_config.num_hidden_layers if config.cls is ArGeneratorConfig else math.inf


def _stages_have_layers(parallel: ParallelSection, config: Part) -> Violations:
    stages, chunks, layers = parallel.pipeline_stage, parallel.pipeline_chunks, _layers(config)
    parts = "pipeline_stage" if chunks == 1 else f"pipeline_stage {stages} * pipeline_chunks {chunks}"
    if stages * chunks > layers:
        yield "parallel_config.pipeline_stage", stages, f"{parts} to be at most the model's {layers} layers"


def _cuts_take_all_layers(parallel: ParallelSection, config: Part) -> Violations:
    layers, cuts = _layers(config), parallel.pipeline_cuts
    each = len(cuts) == parallel.pipeline_stage * parallel.pipeline_chunks
    if layers < math.inf and each and sum(cuts) != layers + 2:
        yield "parallel_config.pipeline_cuts", f"{list(cuts)} with sum {sum(cuts)}", (
            f"the sum {layers + 2}: {layers} layers, what comes before them and what comes after them")


def _recomputed_layers_exist(recompute: Part, config: Part) -> Violations:
    layers = _layers(config)
    beyond = [layer for layer in recompute.elements("select_recompute").values() if layer >= layers]
    if beyond:
        yield "recompute_config.select_recompute", beyond, f"layer numbers below {layers}, the model's layers"


def _best_is_measured(checkpoint: CheckpointSection, validation: ValidationSection) -> Violations:
    if checkpoint.keep_best_max >= 1 and not (
            validation.eval_step_interval >= 1
            and checkpoint.save_checkpoint_steps % validation.eval_step_interval == 0):
        yield "checkpoint.keep_best_max", checkpoint.keep_best_max, (
            f"0, or a validation with every checkpoint: checkpoint.save_checkpoint_steps "
            f"({checkpoint.save_checkpoint_steps}) a multiple of validation.eval_step_interval "
            f"({validation.eval_step_interval})")


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


def _sizes(dataset: Part) -> dict[int, sizes.Size]:
    """The buckets that are sizes, by their place in the list."""
    read = {i: sizes.parse(text) for i, text in dataset.elements("buckets").items()}
    return {i: size for i, size in read.items() if size is not None}


def _buckets_in_table(dataset: Part, vision: VisionConfig) -> Violations:
    side = vision.image_size // vision.patch_size if vision.patch_size > 0 else 0
    for i, size in _sizes(dataset).items():
        if side > 0 and not sizes.fault(size) and (expected := sizes.fault(size, side)):
            yield f"train_dataset.buckets[{i}]", sizes.name(size), expected


def _codes_have_positions(options: Part, dataset: Part, text: TextConfig) -> Violations:
    """The text positions of the decoder against the longest sequence of codes (reference section 3.1)."""
    if options.cls is not ArNextTokenOptions:
        return
    for i, size in _sizes(dataset).items():
        if not sizes.fault(size):
            rows, columns = (side // sizes.CODE_PIXELS for side in size)
            preview = int(16 * math.sqrt(rows / columns)) * int(16 * math.sqrt(columns / rows))
            codes = rows * columns + (preview if options.progressive else 0)
            if codes >= text.max_position_embeddings:
                most = text.max_position_embeddings
                yield f"train_dataset.buckets[{i}]", sizes.name(size), (
                    f"fewer codes than text_config.max_position_embeddings ({most}), not {codes}")


def _buckets_hold_crop(options: Part, dataset: Part) -> Violations:
    if options.cls is VaeReconstructionOptions:
        for i, size in _sizes(dataset).items():
            if min(size) < options.crop_size:
                yield f"train_dataset.buckets[{i}]", sizes.name(size), (
                    f"sides of at least objective.crop_size ({options.crop_size})")


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


def _strict_device(recipe: Part, context: Part) -> Violations:
    if recipe.strict_numerics and context.device_target == "Ascend":
        yield "strict_numerics", True, "false on context.device_target Ascend, where equal bits have not been measured"


def _strict_mode(recipe: Part, context: Part) -> Violations:
    if recipe.strict_numerics and context.mode == 0:
        yield "context.mode", 0, "1 with strict_numerics: a compiled graph orders its sums anew in every layout"


def _strict_sums(recipe: Part, precision: PrecisionSection) -> Violations:
    if recipe.strict_numerics and precision.reduce_dtype != "float32":
        yield "precision.reduce_dtype", precision.reduce_dtype, "float32 with strict_numerics"


CROSS_RULES: tuple[tuple[tuple[str, ...], Callable[..., Violations]], ...] = (
    (("runner_config", "parallel_config"), _batch_divides),
    (("parallel_config", "recompute_config", "trainer"), _model_has_stages),
    (("parallel_config", "recompute_config", "context"), _stages_are_no_graph),
    (("parallel_config", "recompute_config", "model"), _stages_train_all),
    (("parallel_config", "model.model_config"), _stages_have_layers),
    (("parallel_config", "model.model_config"), _cuts_take_all_layers),
    (("recompute_config", "model.model_config"), _recomputed_layers_exist),
    (("context", "precision"), _device_has_dtype),
    (("", "context"), _strict_device),
    (("", "context"), _strict_mode),
    (("", "precision"), _strict_sums),
    (("lr_schedule", "runner_config"), _warmup_fits),
    (("checkpoint", "validation"), _best_is_measured),
    (("trainer", "model.model_config"), _model_fits_trainer),
    (("trainer", "train_dataset"), _dataset_given),
    (("train_dataset", "model.model_config.vision_config"), _buckets_in_table),
    (("objective", "train_dataset", "model.model_config.text_config"), _codes_have_positions),
    (("objective", "train_dataset"), _buckets_hold_crop),
    (("objective", "model.model_config"), _crop_fits_vae),
)
