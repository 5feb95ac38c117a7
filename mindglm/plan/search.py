"""Layouts tried one after the other: which copies, stages, schedule, micro-batches, recomputation and ZeRO fit best.

Every candidate has a floor, the time below which no order of its units can be (`simulation.least`), and is only
played when that is below what the best few already take.
"""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from mindglm.errors import UserError
from mindglm.plan import layout as layouts
from mindglm.plan import memory, planner, simulation, steptime
from mindglm.plan.hardware import Hardware
from mindglm.plan.layout import Layout, even_counts, written
from mindglm.plan.planner import Plan
from mindglm.plan.text import aligned
from mindglm.plan.workload import Workload, mean

MOST_DEVICES = 4096
SCHEDULES = (("1f1b", 1), ("interleaved", 2), ("interleaved", 4))
"""(schedule, chunks) that the executor runs; gpipe is as long as 1f1b and keeps more."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    devices: int
    plans: tuple[Plan, ...]
    """Best first: they fit, and differ in more than one figure each."""
    tried: int
    """Layouts that the batch, the model and the devices allow."""
    too_large: int
    """How many of them do not fit in memory."""
    played: int
    """How many were played to the end."""


def best(workload: Workload, hardware: Hardware, devices: int, count: int = 5) -> Found:
    """The `count` fastest layouts that fit. UserError for more devices than are planned, or none that divide."""
    if devices > MOST_DEVICES:
        raise UserError(f"{devices} devices: --search goes up to {MOST_DEVICES}; expected fewer --nodes")
    tried, floors = 0, []
    for layout in candidates(workload, devices):
        tried = tried + 1
        if fits(workload, layout, hardware):
            floors.append((floor(workload, layout, hardware), len(floors), layout))
    heapq.heapify(floors)
    fitting, done = len(floors), []
    while floors and (len(done) < count or floors[0][0] < sorted(seconds for seconds, *_ in done)[count - 1]):
        _, number, layout = heapq.heappop(floors)
        done.append((steptime.of_layout(workload, layout, hardware, quick=True).total, number, layout))
    plans = [planner.plan(workload, layout, hardware) for *_, layout in sorted(done)[:count]]
    plans.sort(key=lambda plan: plan.time.total)
    return Found(devices, tuple(plans), tried, tried - fitting, len(done))


def candidates(workload: Workload, devices: int) -> Iterator[Layout]:
    """Every layout of the grid that the trainer could run."""
    every_second = frozenset(range(0, workload.layers, 2))
    for stages in (n for n in range(1, min(devices, workload.layers) + 1) if devices % n == 0):
        copies = devices // stages
        if workload.global_batch % copies:
            continue
        share = workload.global_batch // copies
        batches = [m for m in range(1, share + 1) if share % m == 0]
        for m, (kind, chunks), recompute, shard in itertools.product(
                batches, SCHEDULES if stages > 1 else SCHEDULES[:1], (frozenset(), every_second, None),
                (False, True) if copies > 1 else (False,)):
            if stages * chunks <= workload.layers and (kind != "interleaved" or m % stages == 0):
                cut = even_counts(workload.samples[0].cut_flops, stages, chunks) if chunks > 1 else ()
                layout = Layout(copies, stages, kind, chunks, m, recompute, shard, cut)
                if not (workload.frozen and layout.runs_stages):
                    yield layout


def fits(workload: Workload, layout: Layout, hardware: Hardware) -> bool:
    """Whether every place of the pipeline fits, for every size of sample."""
    ranges = layout.ranges(workload)
    return all(memory.of_place(workload, sample, layout, ranges, place, hardware).peak <= hardware.memory
               for place in range(layout.stages) for sample in workload.samples)


def floor(workload: Workload, layout: Layout, hardware: Hardware) -> float:
    """Seconds that a step takes at least."""
    ranges = layout.ranges(workload)

    def least(sample) -> float:
        costs, *_ = steptime.stage_seconds(workload, sample, layout, ranges, hardware)
        reduction, update, _, average = steptime.after_backward(workload, layout, hardware, ranges, costs)
        played = simulation.least(layout.micro_batches, layout.stages, layout.chunks, costs)
        return played + reduction + update + average

    return mean(workload.samples, least)


def told(found: Found, name: str) -> str:
    """The report of a search."""
    head = (f"search for {name} on {found.devices} devices: {found.tried} layouts, {found.too_large} do not fit, "
            f"{found.played} played")
    if not found.plans:
        return head + "\n\nno layout fits; a smaller micro-batch needs a larger global batch, or take more devices"
    rows = [("data_parallel", "pipeline_stage", "schedule", "chunks", "micro-batches", "of", "recompute", "ZeRO-1",
             "step s", "MFU", "fullest GiB", "images/s")]
    for plan in found.plans:
        layout = plan.layout
        rows.append((str(layout.data_parallel), str(layout.stages), layout.schedule if layout.stages > 1 else "-",
                     str(layout.chunks), str(layout.micro_batches), str(layout.micro_batch(plan.workload)),
                     "all" if layout.recompute is None else "half" if layout.recompute else "none",
                     "yes" if layout.optimizer_shard else "no", f"{plan.time.total:.3f}", f"{plan.mfu:.1%}",
                     f"{plan.peak / 2**30:.1f}",
                     f"{plan.images_per_second:,.1f}"))
    return (f"{head}\n\nthe fastest that fit, planned and not measured\n{aligned(rows)}\n\n"
            f"the first as keys:\n  {keys(found.plans[0])}")


def keys(plan: Plan) -> str:
    """The layout as overrides of a recipe."""
    return written(layouts.keys(plan.layout, plan.workload))


def as_numbers(found: Found, name: str) -> dict:
    """The search as plain numbers and texts."""
    return {"recipe": name, "planned": True, "devices": found.devices, "tried": found.tried,
            "too_large": found.too_large, "played": found.played,
            "best": [{"keys": keys(plan), "step_seconds": plan.time.total, "mfu": plan.mfu, "peak": plan.peak,
                      "images_per_second": plan.images_per_second} for plan in found.plans]}
