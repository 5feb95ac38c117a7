"""The allowed range of every number in a recipe: what `recipe check`, `recipe explain` and the JSON Schema go by.

Values that hang on other values are checked by `rules`; a range says what no recipe may leave.
"""

import dataclasses
import typing
from dataclasses import dataclass

from mindglm.recipe.models import VAEConfig
from mindglm.recipe.schema import (
    MODEL_TYPES,
    ArNextTokenOptions,
    CheckpointSection,
    EmaSection,
    FlowMatchingOptions,
    GlyphAlignmentOptions,
    LrScheduleSection,
    MonitorSection,
    OptimizerSection,
    ParallelSection,
    Recipe,
    RecomputeSection,
    RunnerSection,
    RunnerWrapperSection,
    VaeReconstructionOptions,
    ValidationSection,
    VqReconstructionOptions,
    hints,
)


@dataclass(frozen=True)
class Range:
    """Bounds of a number; of a list: of each number in it."""

    low: float
    low_allowed: bool = True
    high: float | None = None
    high_allowed: bool = True
    also: float | None = None
    """A single value outside of the bounds that is allowed."""

    def __contains__(self, value: float) -> bool:
        if value == self.also:
            return True
        if value < self.low or value == self.low and not self.low_allowed:
            return False
        return self.high is None or value < self.high or value == self.high and self.high_allowed

    @property
    def unbounded(self) -> bool:
        return self.low == float("-inf") and self.high is None

    def __str__(self) -> str:
        text = f"at least {self.low}" if self.low_allowed else f"more than {self.low}"
        if self.high is not None:
            text += f" and at most {self.high}" if self.high_allowed else f" and less than {self.high}"
        return text if self.also is None else f"{self.also}, or {text}"


COUNT, FROM_ZERO, ABOVE_ZERO, CHANCE = Range(1), Range(0), Range(0, low_allowed=False), Range(0, high=1)
DECAY = Range(0, high=1, high_allowed=False)
ANY_NUMBER = Range(float("-inf"))

RANGES: dict[type, dict[str, Range]] = {
    Recipe: {"seed": Range(0, high=2**63 - 1)},
    RunnerSection: {"global_batch_size": COUNT, "stop_step": COUNT, "gradient_accumulation_steps": COUNT},
    ParallelSection: {"data_parallel": COUNT, "model_parallel": COUNT, "context_parallel": COUNT,
                      "pipeline_stage": COUNT, "micro_batch_num": COUNT, "pipeline_chunks": COUNT,
                      "pipeline_cuts": COUNT},
    RecomputeSection: {"select_recompute": FROM_ZERO},
    OptimizerSection: {"betas": DECAY, "eps": Range(0, low_allowed=False, high=1), "weight_decay": CHANCE},
    LrScheduleSection: {"learning_rate": Range(0, low_allowed=False, high=1), "lr_end": CHANCE,
                        "warmup_steps": FROM_ZERO, "total_steps": Range(1, also=-1)},
    RunnerWrapperSection: {"max_grad_norm": ABOVE_ZERO, "max_skipped_steps": FROM_ZERO},
    EmaSection: {"decay": DECAY, "warmup_steps": FROM_ZERO},
    CheckpointSection: {"save_checkpoint_steps": COUNT, "keep_checkpoint_max": COUNT, "keep_best_max": FROM_ZERO},
    ValidationSection: {"eval_step_interval": FROM_ZERO, "eval_samples": COUNT},
    MonitorSection: {"log_interval": COUNT, "sample_step_interval": FROM_ZERO,
                     "weights_hash_interval": FROM_ZERO},
    ArNextTokenOptions: {"preview_weight": ABOVE_ZERO, "pad_to_multiple": COUNT, "prompt_dropout": CHANCE},
    FlowMatchingOptions: {"condition_dropout": CHANCE, "glyph_dropout": CHANCE, "code_corruption": CHANCE,
                          "glyph_pad_to": COUNT},
    VaeReconstructionOptions: {"crop_size": COUNT, "l1_weight": FROM_ZERO, "kl_weight": FROM_ZERO},
    VqReconstructionOptions: {"commitment_beta": FROM_ZERO, "codebook_weight": FROM_ZERO,
                              "reseed_interval": FROM_ZERO, "reseed_until": FROM_ZERO},
    GlyphAlignmentOptions: {"max_bytes": COUNT, "bitmap_size": COUNT},
    VAEConfig: {"latents_mean": ANY_NUMBER},
}


def range_of(cls: type, key: str) -> Range | None:
    """The range of a number, or of the numbers of a list; None for a key that holds none."""
    if key in RANGES.get(cls, {}):
        return RANGES[cls][key]
    kinds = set(leaves(hints(cls)[key]))
    if cls not in STRUCTURES or not kinds & {int, float}:
        return None
    # Numbers of a structure are sizes and counts; ids and the split of rotary frequencies may be 0.
    return FROM_ZERO if key.endswith("_token_id") or key == "mrope_section" else ABOVE_ZERO


def leaves(hint: object) -> list[object]:
    """The types of the values that a type is made of."""
    args = typing.get_args(hint)
    return [leaf for arg in args for leaf in leaves(arg)] if args else [hint]


def _structures() -> frozenset[type]:
    found: set[type] = set()
    waiting = list(MODEL_TYPES.values())
    while waiting:
        cls = waiting.pop()
        found.add(cls)
        waiting += [hint for hint in hints(cls).values() if dataclasses.is_dataclass(hint)]
    return frozenset(found)


STRUCTURES = _structures()
"""The dataclasses of model structures."""
