"""The plan of a run: memory by rank, seconds by term, what the whole run costs, and what to change next."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mindglm.errors import UserError
from mindglm.plan import memory, simulation, steptime
from mindglm.plan.hardware import Hardware
from mindglm.plan.layout import Layout, changed_keys, even_counts, written
from mindglm.plan.memory import RankMemory
from mindglm.plan.steptime import StepTime
from mindglm.plan.workload import Workload, mean

DAY = 86400.0
MASTER, MOMENTS, FLOAT = 1, 2, 4


@dataclass(frozen=True)
class Plan:
    """A run in one layout on one machine. Times are planned, not measured."""

    workload: Workload
    layout: Layout
    hardware: Hardware
    ranges: tuple[tuple[int, int], ...]
    """Units of each part of the model."""
    memory: tuple[RankMemory, ...]
    """By place in the pipeline."""
    time: StepTime
    """Of one optimizer step."""
    stated: Layout
    """The layout of the recipe, which its changes start from."""

    @property
    def peak(self) -> int:
        """Bytes on the fullest device."""
        return max(rank.peak for rank in self.memory)

    @property
    def fits(self) -> bool:
        return self.peak <= self.hardware.memory

    @property
    def nodes(self) -> int:
        return -(-self.layout.devices // self.hardware.devices_per_node)

    @property
    def model_flops(self) -> float:
        """Of a step over all devices: three forward passes of what the model needs, recomputation not counted."""
        return 3 * self.workload.global_batch * mean(
            self.workload.samples, lambda sample: sum(unit.model_flops for unit in sample.units))

    @property
    def executed_flops(self) -> float:
        """Of a step over all devices, as the kernels execute them, recomputation included."""
        return self.workload.global_batch * mean(self.workload.samples, lambda sample: sum(
            unit.forward.flops + unit.backward.flops
            + (unit.forward.flops if unit.can_recompute and self.layout.recomputes(i) else 0)
            for i, unit in enumerate(sample.units)))

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation (Chowdhery et al. 2022)."""
        return self.model_flops / (self.time.total * self.layout.devices * self.hardware.peak_flops)

    @property
    def bubble(self) -> float:
        """Share of the ranks' time in a step's table that is waiting."""
        return self.time.waiting

    @property
    def images_per_second(self) -> float:
        return self.workload.global_batch / self.time.total

    @property
    def tokens_per_second(self) -> float:
        return self.images_per_second * mean(self.workload.samples, lambda sample: sample.tokens)

    @property
    def checkpoint_bytes(self) -> int:
        """Tensors of one checkpoint: float32 masters, two moments, and the moving average."""
        return self.workload.parameters * FLOAT * (MASTER + MOMENTS + self.workload.keeps_average)

    @property
    def checkpoint_seconds(self) -> float:
        """Until it is written: every rank writes what it owns, the ranks of a node share its storage."""
        return self.checkpoint_bytes / self._writing_nodes / self.hardware.storage_bandwidth

    @property
    def _writing_nodes(self) -> int:
        writers = self.layout.devices if self.layout.optimizer_shard else self.layout.stages
        return max(1, min(self.nodes, writers // min(writers, self.hardware.devices_per_node)))

    @property
    def run_seconds(self) -> float:
        """Of the whole run, checkpoints included, validation, pictures and restarts not."""
        checkpoints = max(1, self.workload.steps // self.workload.checkpoint_interval)
        return self.workload.steps * self.time.total + checkpoints * self.checkpoint_seconds

    @property
    def device_hours(self) -> float:
        return self.run_seconds / 3600 * self.layout.devices

    def messages(self) -> list[int]:
        """Bytes that one micro-batch sends each way over the boundary behind each part of the model (largest size)."""
        batch = self.layout.micro_batch(self.workload)
        return [max(steptime.message_bytes(sample, stop - 1, batch, self.workload.weight_bytes)
                    for sample in self.workload.samples) for _, stop in self.ranges[:-1]]


def plan(workload: Workload, layout: Layout, hardware: Hardware, quick: bool = False,
         stated: Layout | None = None) -> Plan:
    """UserError when the layout cannot be: a batch that does not divide, more parts than units.

    stated: the layout of the recipe, where another one is planned.
    """
    layout.micro_batch(workload)
    return Plan(workload, layout, hardware, layout.ranges(workload), memory.of_layout(workload, layout, hardware),
                steptime.of_layout(workload, layout, hardware, quick), stated or layout)


def played(plan: Plan, draw: bool = False, micro_batches: int = 0) -> simulation.Played:
    """A pipeline's step of the first size of sample, unit by unit. micro_batches: as if it had so many; 0: its own."""
    layout, sample = plan.layout, plan.workload.samples[0]
    costs, *_ = steptime.stage_seconds(plan.workload, sample, layout, plan.ranges, plan.hardware)
    count = micro_batches or layout.micro_batches
    return simulation.play(layout.schedule, layout.stages, count, layout.chunks, costs, draw)


# ---- what to change next ----


@dataclass(frozen=True)
class Knob:
    """One change of a recipe and what it would do."""

    keys: str
    """As they are written behind the recipe."""
    plan: Plan
    changes_numerics: bool = False

    @property
    def planned_only(self) -> bool:
        """Whether the trainer refuses it."""
        return self.plan.layout.stages > 1 and self.plan.layout.schedule == "zb_h1"

    def gain(self, before: Plan) -> float:
        """Share of the step's time that is saved."""
        return 1 - self.plan.time.total / before.time.total


def knobs(before: Plan) -> list[Knob]:
    """The single changes that help, best first: that fit where the plan does not, else that save 1 % of the time."""
    effects: dict[tuple[float, int], Knob] = {}  # of several changes to the same end, the one tried first
    for layout, workload, other, numerics in _changes(before.workload, before.layout):
        if layout.parts > workload.layers or layout.runs_stages and workload.frozen:
            continue
        keys = {**changed_keys(before.stated, layout, workload), **other}
        numerics = numerics or "context.mode" in keys  # a compiled graph rounds otherwise
        try:
            knob = Knob(written(keys), plan(workload, layout, before.hardware, quick=True), numerics)
        except UserError:  # a layout that cannot be is no change to offer
            continue
        effects.setdefault((round(knob.plan.time.total, 6), knob.plan.peak), knob)
    found = list(effects.values())
    if not before.fits:
        return sorted((knob for knob in found if knob.plan.peak < before.peak),
                      key=lambda knob: (not knob.plan.fits, knob.plan.time.total if knob.plan.fits else knob.plan.peak))
    return sorted((knob for knob in found if knob.plan.fits and knob.gain(before) > 0.01),
                  key=lambda knob: knob.plan.time.total)


Change = tuple[Layout, Workload, dict[str, str], bool]
"""(layout, workload, keys beside those of the layout, whether results change beyond the order of sums)."""


def _changes(workload: Workload, layout: Layout) -> Iterator[Change]:
    """What is worth trying."""
    for changed in _layouts(workload, layout):
        yield changed, workload, {}, False
    if layout.data_parallel > 1 and workload.reduce_bytes == FLOAT and not workload.strict:
        yield layout, replace(workload, reduce_bytes=2), {"precision.reduce_dtype": "bfloat16"}, True
    if workload.keeps_average:
        yield layout, replace(workload, keeps_average=False), {"ema.decay": "0"}, True


def _layouts(workload: Workload, layout: Layout) -> Iterator[Layout]:
    m, dp, p = layout.micro_batches, layout.data_parallel, layout.stages
    for factor in (2, 4):
        yield replace(layout, micro_batches=m * factor)
        if m % factor == 0:
            yield replace(layout, micro_batches=m // factor)
    for recompute in (None, frozenset()):
        if layout.recompute != recompute:
            yield replace(layout, recompute=recompute)
    if dp > 1:
        yield replace(layout, optimizer_shard=not layout.optimizer_shard)
    if p > 1:
        for chunks in {2, 3, 4} - {layout.chunks}:
            yield replace(layout, schedule="interleaved", chunks=chunks, cut=())
        if layout.schedule != "1f1b":
            yield replace(layout, schedule="1f1b", chunks=1, cut=())
        if layout.cut:
            yield replace(layout, cut=())
        yield from _even_cuts(workload, layout)
    for stages, copies in ((p * 2, dp // 2), (p // 2, dp * 2)):
        if min(stages, copies) >= 1 and stages * copies == p * dp:
            chunks = layout.chunks if stages > 1 else 1
            yield replace(layout, data_parallel=copies, stages=stages, micro_batches=max(1, m * stages // p),
                          chunks=chunks, schedule=layout.schedule if chunks > 1 else "1f1b", cut=())


def _even_cuts(workload: Workload, layout: Layout) -> Iterator[Layout]:
    """Parts that load the ranks alike, for the chunks as they are and for others."""
    for chunks in {1, 2, 3, 4, layout.chunks}:
        if layout.stages * chunks > workload.layers or chunks > 1 and layout.micro_batches % layout.stages:
            continue
        counts = even_counts(workload.samples[0].cut_flops, layout.stages, chunks)
        yield replace(layout, schedule="interleaved" if chunks > 1 else "1f1b", chunks=chunks, cut=counts)
