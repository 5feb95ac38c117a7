"""How a run is spread over devices: what the planner varies and a recipe states."""

import functools
import math
from dataclasses import dataclass, replace

from mindglm.errors import UserError
from mindglm.plan import cuts
from mindglm.plan.workload import Workload


@dataclass(frozen=True)
class Layout:
    """data_parallel copies of a pipeline. Rank = copy * stages + place, as in mindglm.parallel.mesh."""

    data_parallel: int
    stages: int
    schedule: str
    chunks: int
    micro_batches: int
    """Of a data-parallel rank in one step."""
    recompute: frozenset[int] | None = frozenset()
    """Numbers of the recomputed layers, from 0; None: all."""
    optimizer_shard: bool = False
    cut: tuple[int, ...] = ()
    """Units of each part; (): balanced by FLOPs."""

    @property
    def devices(self) -> int:
        return self.data_parallel * self.stages

    @property
    def parts(self) -> int:
        """Stages of the model, chunks counted: part i lies on place i % stages."""
        return self.stages * self.chunks

    @property
    def runs_stages(self) -> bool:
        """As `Recipe.runs_stages`: whether the pipeline's executor runs it, which also recomputes."""
        return self.parts > 1 or self.recompute != frozenset()

    def micro_batch(self, workload: Workload) -> int:
        """Samples of a micro-batch. UserError when the global batch does not divide."""
        of = self.data_parallel * self.micro_batches
        if workload.global_batch % of:
            raise UserError(f"a global batch of {workload.global_batch} does not divide into {self.data_parallel} "
                            f"data-parallel ranks x {self.micro_batches} micro-batches; expected a multiple of {of}")
        return workload.global_batch // of

    def ranges(self, workload: Workload) -> tuple[cuts.Range, ...]:
        """The units of each part, cut as the trainer cuts them."""
        costs = workload.samples[0].cut_flops
        if self.cut:
            return cuts.explicit(self.cut, len(costs), self.parts)
        return _balanced(costs, self.parts)

    def recomputes(self, unit: int) -> bool:
        """Whether unit number `unit` (layer `unit` - 1) is recomputed."""
        return self.recompute is None or unit - 1 in self.recompute

    def described(self) -> str:
        """One line, in the recipe's words."""
        parts = [f"data_parallel {self.data_parallel}", f"pipeline_stage {self.stages}"]
        if self.stages > 1:
            parts.append(self.schedule + (f" with {self.chunks} chunks" if self.chunks > 1 else ""))
        parts.append(f"{self.micro_batches} micro-batches")
        layers = "all" if self.recompute is None else len(self.recompute)
        parts.append("no recomputation" if self.recompute == frozenset() else f"recompute {layers} layers")
        parts.append("ZeRO-1" if self.optimizer_shard else "no ZeRO-1")
        return ", ".join(parts)


_balanced = functools.lru_cache(maxsize=256)(cuts.balanced)


@functools.lru_cache(maxsize=256)
def even_counts(costs: tuple[int, ...], stages: int, chunks: int) -> tuple[int, ...]:
    """Units of each part of `cuts.even`, as parallel_config.pipeline_cuts takes them."""
    return tuple(b - a for a, b in cuts.even(costs, stages, chunks))


def of_recipe(recipe) -> Layout:
    """The layout that a recipe states."""
    section, again = recipe.parallel_config, recipe.recompute_config
    return Layout(section.data_parallel, section.pipeline_stage, section.pipeline_schedule, section.pipeline_chunks,
                  recipe.micro_batches, None if again.recompute else frozenset(again.select_recompute),
                  section.optimizer_shard, section.pipeline_cuts)


MICRO_BATCHES = ("parallel_config.micro_batch_num", "runner_config.gradient_accumulation_steps")
"""Their product counts; only a pipeline has the first."""


def keys(layout: Layout, workload: Workload) -> dict[str, str]:
    """The whole layout as overrides of the workload's recipe: dotted key -> value."""
    batches = (layout.micro_batches, 1) if layout.stages > 1 else (1, layout.micro_batches)
    values = {"parallel_config.data_parallel": layout.data_parallel, "parallel_config.pipeline_stage": layout.stages,
              "parallel_config.pipeline_schedule": layout.schedule, "parallel_config.pipeline_chunks": layout.chunks,
              "parallel_config.pipeline_cuts": list(layout.cut), **dict(zip(MICRO_BATCHES, batches)),
              "parallel_config.optimizer_shard": layout.optimizer_shard,
              "recompute_config.recompute": layout.recompute is None,
              "recompute_config.select_recompute": sorted(layout.recompute or ())}
    if workload.compiled and layout.runs_stages:
        values["context.mode"] = 1
    return {name: str(value).lower().replace(" ", "") for name, value in values.items()}


def changed_keys(before: Layout, after: Layout, workload: Workload) -> dict[str, str]:
    """The overrides that make `after` of the workload's recipe, which states `before`."""
    old, new = keys(before, workload), keys(after, workload)
    # The recipe may share its micro-batches out between the two keys as it likes: other ones need both.
    again = MICRO_BATCHES if (before.micro_batches, before.stages) != (after.micro_batches, after.stages) else ()
    return {name: value for name, value in new.items() if value != old.get(name) or name in again}


def written(overrides: dict[str, str]) -> str:
    """As they stand behind a recipe on the command line."""
    return " ".join(f"{name}={value}" for name, value in overrides.items())


def on_devices(layout: Layout, workload: Workload, devices: int) -> Layout:
    """The layout with as many copies as fill `devices`, the global batch and, if it divides, the micro-batch kept.

    UserError when the pipeline does not divide the devices, or the copies the global batch.
    """
    if devices % layout.stages:
        raise UserError(f"{devices} devices cannot hold pipelines of {layout.stages} stages; expected a multiple of "
                        f"{layout.stages}: set parallel_config.pipeline_stage, or let --search look for a layout")
    copies = devices // layout.stages
    if workload.global_batch % copies:
        below = max(n for n in range(1, min(copies, workload.global_batch) + 1)
                    if workload.global_batch % n == 0)
        raise UserError(
            f"a global batch of {workload.global_batch} does not divide over {copies} data-parallel ranks "
            f"({devices} devices in pipelines of {layout.stages}); expected at most {below} of them, or another "
            f"runner_config.global_batch_size, for instance {math.ceil(workload.global_batch / copies) * copies}")
    share = workload.global_batch // copies
    size = math.gcd(share, layout.micro_batch(workload))
    return replace(layout, data_parallel=copies, micro_batches=share // size)
