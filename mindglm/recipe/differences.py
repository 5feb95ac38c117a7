"""What a changed recipe means for a run that is resumed with it: each key is safe, changes numerics, or is forbidden.

    safe        the run goes on as it would have; other layouts give the same run to rounding (promise 3)
    numerics    it goes on, but is no more the run that was not interrupted: said, and recorded in the ledger
    forbidden   the checkpoint's tensors belong to the old value: refused
"""

import dataclasses
from dataclasses import dataclass

import yaml

from mindglm.errors import UserError
from mindglm.recipe.schema import MODEL_TYPES, OBJECTIVE_TYPES, Recipe

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH = 20
SAFE, NUMERICS, FORBIDDEN = "safe", "numerics", "forbidden"

_LAYOUT = "the layout; the same run to rounding, with strict_numerics to the bit"
_TOLD = "what is told or kept, not what is computed"
_OPTIMIZER = "how weights are updated"
_MODEL = "the tensors of the checkpoint are those of the old structure"

CLASSES: dict[str, tuple[str, str]] = {
    "seed": (NUMERICS, "the order of samples and every random number"),
    "run_mode": (SAFE, _TOLD),
    "output_dir": (SAFE, "the run was moved"),
    "pretrained_model_dir": (NUMERICS, "the frozen components and the noise scheduler; start weights are not read"),
    "resume_training": (SAFE, "whether to go on"),
    "strict_numerics": (NUMERICS, "the order of sums"),
    "trainer.type": (FORBIDDEN, "another objective trains other tensors"),
    "trainer.model_name": (SAFE, "a name for people"),
    "runner_config.global_batch_size": (NUMERICS, "the samples of every step"),
    "runner_config.gradient_accumulation_steps": (SAFE, _LAYOUT),
    "runner_config.stop_step": (NUMERICS, "the length of the learning rate schedule, as lr_schedule.total_steps is -1"),
    "context.device_target": (NUMERICS, "other kernels"),
    "context.mode": (NUMERICS, "a compiled graph rounds otherwise"),
    "parallel_config": (SAFE, _LAYOUT),
    "recompute_config": (SAFE, "the same numbers, computed again"),
    "precision": (NUMERICS, "number formats"),
    "optimizer": (NUMERICS, _OPTIMIZER),
    "optimizer.type": (FORBIDDEN, "the moments in the checkpoint belong to the old optimizer"),
    "lr_schedule": (NUMERICS, "the learning rate"),
    "runner_wrapper": (NUMERICS, "how gradients are clipped"),
    "runner_wrapper.max_skipped_steps": (SAFE, "when the run gives up"),
    "ema": (NUMERICS, "the average of the weights"),
    "model.model_config": (FORBIDDEN, _MODEL),
    "model.frozen": (FORBIDDEN, "the optimizer state in the checkpoint is that of the parameters that trained"),
    "model.fresh": (SAFE, "only a start from pretrained_model_dir reads it"),
    "objective": (NUMERICS, "what is minimised"),
    "train_dataset": (NUMERICS, "the samples"),
    "checkpoint": (SAFE, _TOLD),
    "validation": (SAFE, _TOLD),
    "monitor_config": (SAFE, _TOLD),
}
"""Dotted key, or the section it is in, -> (class, what it decides). The longest entry that fits counts."""


@dataclass(frozen=True)
class Change:
    """One key whose value differs."""

    key: str
    before: object
    after: object
    kind: str
    """safe | numerics | forbidden"""
    reason: str
    """What the key decides."""

    @property
    def text(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}"

    def __str__(self) -> str:
        """The sentence for a run's log."""
        if self.kind == NUMERICS:
            return (f"changed since that checkpoint: {self.text}. This changes numerics ({self.reason}): from here on "
                    "the run is not the one that was not interrupted")
        return f"changed since that checkpoint: {self.text} ({self.kind}: {self.reason})"


def of_resume(before: str, after: str) -> list[Change]:
    """`between`, for a run that goes on from a checkpoint. UserError that lists all forbidden changes."""
    changes = between(before, after)
    forbidden = [change for change in changes if change.kind == FORBIDDEN]
    if forbidden:
        listed = "\n".join(f"  {change.text} ({change.reason})" for change in forbidden)
        raise UserError(f"this recipe cannot continue the checkpoint, because it changes\n{listed}\n"
                        "Undo the changes, or give another output_dir and start from an exported model by "
                        "pretrained_model_dir")
    return changes


def between(before: str, after: str) -> list[Change]:
    """What differs between two resolved recipes (YAML), by key. A key that one of them lacks has its default there."""
    old, new = flat(_parsed(before)), flat(_parsed(after))
    found = []
    for key in sorted(set(old) | set(new)):
        was, now = (side.get(key, _default(key)) for side in (old, new))
        if was != now:
            kind, reason = _value_class(key, old, new)
            found.append(Change(key, was, now, kind, reason))
    return found


def _parsed(text: str) -> object:
    """The values of a resolved recipe. UserError for one that we never wrote, which could unfold without end."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise UserError("recipe.yaml: holds YAML aliases, which no stored recipe has")
            opens = isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
            depth = depth + opens - isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
            if depth > _DEPTH:
                raise UserError(f"recipe.yaml: sections nested deeper than {_DEPTH}, which no stored recipe has")
        found = yaml.load(text, Loader=_LOADER)
        if not isinstance(found, dict):
            raise UserError("recipe.yaml: not a stored recipe (no sections)")
        return found
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"recipe.yaml: not a stored recipe ({error})") from error


def class_of(key: str) -> tuple[str, str]:
    """(class, what it decides) of a dotted key; one that is not of this release's schema changes numerics."""
    section = key
    while section not in CLASSES:
        section, dot, _ = section.rpartition(".")
        if not dot:
            return NUMERICS, "a key that this release does not know"
    return CLASSES[section]


def _value_class(key: str, old: dict, new: dict) -> tuple[str, str]:
    """As class_of, where the other values may decide."""
    if key in _ENDS and _schedule_end(old) == _schedule_end(new):
        return SAFE, "the end of the run; the end of the learning rate schedule stays"
    if key == "runner_config.stop_step" and -1 not in (_value(side, "lr_schedule.total_steps") for side in (old, new)):
        return SAFE, "the end of the run; lr_schedule.total_steps says where the schedule ends"
    if key in _MICRO and _value(new, "strict_numerics") and _micro_size(old) != _micro_size(new):
        return NUMERICS, "the size of a micro-batch, on which the bits depend with strict_numerics"
    return class_of(key)


_MICRO = ("runner_config.gradient_accumulation_steps", "parallel_config.data_parallel",
          "parallel_config.micro_batch_num")


_ENDS = ("runner_config.stop_step", "lr_schedule.total_steps")


def _schedule_end(values: dict) -> object:
    """The step at which the learning rate schedule ends."""
    total = _value(values, "lr_schedule.total_steps")
    return _value(values, "runner_config.stop_step") if total == -1 else total


def _micro_size(values: dict) -> float:
    parts = 1
    for key in _MICRO:
        parts = parts * _value(values, key)
    return _value(values, "runner_config.global_batch_size") / parts


def _value(values: dict, key: str) -> object:
    return values.get(key, _default(key))


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """{dotted key: value} of nested sections; a list is a value."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: item for name, part in value.items()
            for key, item in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}


def schema_keys() -> dict[str, object]:
    """{dotted key: default, as YAML would have it, or dataclasses.MISSING} of everything a recipe may hold."""
    found: dict[str, object] = {"model.model_config.type": dataclasses.MISSING}
    _collect(Recipe, "", found)
    return found


def _collect(cls: type, prefix: str, found: dict[str, object]) -> None:
    for field in dataclasses.fields(cls):
        key = f"{prefix}.{field.name}" if prefix else field.name
        kinds = {"model.model_config": tuple(MODEL_TYPES.values()), "objective": tuple(OBJECTIVE_TYPES.values())}
        for kind in kinds.get(key, (field.type,)):
            if dataclasses.is_dataclass(kind):
                _collect(kind, key, found)
            else:
                found[key] = list(field.default) if isinstance(field.default, tuple) else field.default


def _default(key: str) -> object:
    default = schema_keys().get(key)
    return None if default is dataclasses.MISSING else default
