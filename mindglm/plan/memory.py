"""Device memory of each pipeline rank: what the trainer allocates, and when.

A step has two peaks. In the backward pass: weights, optimizer state, the float32 gradient sums, activations of the
micro-batches in flight, and the gradients of one backward, which the tape hands over all at once. In the update:
weights, state, gradients, and their scaled copy. Copies of a pipeline need the same; a rank here is a place in it.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mindglm.plan import schedules
from mindglm.plan.hardware import Hardware
from mindglm.plan.layout import Layout
from mindglm.plan.schedules import BACKWARD, FORWARD, WEIGHT
from mindglm.plan.workload import Sample, Unit, Workload

BUCKET_ELEMENTS = 2**23
"""As mindglm.train.buckets.ELEMENTS."""
HCCL_BUFFER = 200 * 2**20
"""HCCL_BUFFSIZE's default, which launch/env_atlas800t_a2.sh sets; a communicator takes two (CANN: HCCL_BUFFSIZE)."""
FLOAT = 4


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the device of one place in the pipeline."""

    parameters: int
    optimizer: int
    """Float32 masters (on the CPU they are the parameters themselves) and two moments, of what ZeRO-1 leaves here."""
    gradients: int
    """Float32 sums over the micro-batches."""
    reduced: int
    """What is left of them for the update: with ZeRO-1 this rank's part."""
    activations: int
    """Kept for backward passes to come, over all micro-batches in flight."""
    working: int
    """Gradients and recomputed activations of the backward that runs, and values on their way between stages."""
    communication: int
    """Buffers of the communicators."""
    update: int
    """What the optimizer's update takes beside parameters, state and gradients."""
    reserved: int
    """Driver and runtime."""
    in_flight: int
    """Forwards whose activations are kept at one time, at most."""
    average: int
    """Moving average of the weights. On the host, not on the device."""

    @property
    def backward_peak(self) -> int:
        return self._lasting + self.gradients + self.activations + self.working

    @property
    def update_peak(self) -> int:
        return self._lasting + self.reduced + self.update

    @property
    def peak(self) -> int:
        return max(self.backward_peak, self.update_peak)

    @property
    def _lasting(self) -> int:
        return self.parameters + self.optimizer + self.communication + self.reserved


def decays(name: str, shape: tuple[int, ...], no_decay: tuple[str, ...]) -> bool:
    """As mindglm.train.optimizer.decays, which cannot be imported without MindSpore."""
    return len(shape) > 1 and not any(fragment in name for fragment in no_decay)


def buckets(tensors: Sequence[tuple[str, tuple[int, ...]]], no_decay: tuple[str, ...],
            elements: int = BUCKET_ELEMENTS) -> list[int]:
    """Elements of each bucket of gradients, as mindglm.train.buckets.FlatSpace cuts them.

    Parameters by name, those with weight decay first; a bucket ends before the tensor that would overfill it.
    """
    found: list[int] = []
    for with_decay in (True, False):
        size = 0
        for name, shape in sorted(tensors):
            if decays(name, shape, no_decay) == with_decay:
                count = math.prod(shape)
                if size and size + count > elements:
                    found.append(size)
                    size = 0
                size = size + count
        if size:
            found.append(size)
    return found


def owned(sizes: Sequence[int], shards: int) -> int:
    """Elements that each of `shards` ranks keeps of buckets of these sizes: each is padded to a multiple."""
    return sum(-(-size // shards) for size in sizes)


def units_of_place(units: Sequence[Unit], layout: Layout, ranges, place: int) -> list[list[Unit]]:
    """The units of each chunk of a place in the pipeline, chunk 0 first."""
    return [list(units[start:stop]) for start, stop in ranges[place::layout.stages]]


def communicators(layout: Layout) -> int:
    """Groups a rank is a member of: all ranks; with a pipeline and copies of it also its stage and its pipeline."""
    if layout.devices == 1:
        return 0
    return 3 if layout.stages > 1 and layout.data_parallel > 1 else 1


@functools.lru_cache(maxsize=4096)
def flights(kind: str, ranks: int, micro_batches: int, chunks: int, place: int) -> tuple[tuple[int, ...], ...]:
    """The fullest moments of a place: forwards kept by chunk, every count that no other moment exceeds.

    Later micro-batches repeat what the first few show, so a long schedule is as full as a short one.
    """
    enough = min(micro_batches, 2 * ranks) if kind != "gpipe" else micro_batches
    if kind == "gpipe":
        return ((enough,),)
    if kind in ("1f1b", "zb_h1"):
        return ((min(micro_batches, ranks if kind == "zb_h1" else ranks - place),),)
    kept, moments = [0] * chunks, set()
    for what, chunk, _ in schedules.interleaved_order(place, ranks, enough, chunks):
        kept[chunk] = kept[chunk] + {FORWARD: 1, BACKWARD: -1, WEIGHT: 0}[what]
        moments.add(tuple(kept))
    return tuple(moment for moment in moments
                 if not any(other != moment and all(a >= b for a, b in zip(other, moment)) for other in moments))


def kept_bytes(units: Sequence[Unit], first_unit: int, layout: Layout) -> int:
    """Bytes that one sample's pass through consecutive units keeps for its backward."""
    return sum(unit.kept_when_recomputed if unit.can_recompute and layout.recomputes(first_unit + i) else unit.kept
               for i, unit in enumerate(units))


def of_place(workload: Workload, sample: Sample, layout: Layout, ranges, place: int, hardware: Hardware) -> RankMemory:
    """The memory of one place in the pipeline for micro-batches of one size of sample."""
    fused, batch = hardware.form == "fused", layout.micro_batch(workload)
    mine = ranges[place::layout.stages]
    chunks = units_of_place(sample.units, layout, ranges, place)
    tensors = [tensor for units in chunks for unit in units for tensor in unit.tensors]
    sizes = buckets(tensors, workload.no_decay)
    count, state = sum(sizes), owned(sizes, layout.data_parallel if layout.optimizer_shard else 1)
    handed_on = [workload.weight_bytes * units[-1].sent if stop < len(sample.units) else 0
                 for units, (_, stop) in zip(chunks, mine)]  # the executor keeps it, too
    kept = [batch * (kept_bytes(units, start, layout) + more)
            for units, (start, _), more in zip(chunks, mine, handed_on)]
    again = [unit.kept * batch for units, (start, _) in zip(chunks, mine) for i, unit in enumerate(units)
             if unit.can_recompute and layout.recomputes(start + i)]
    moments = flights(layout.schedule if layout.stages > 1 or layout.chunks > 1 else "1f1b", layout.stages,
                      layout.micro_batches, layout.chunks, place)
    activations = max(sum(n * size for n, size in zip(moment, kept)) for moment in moments)
    one_backward = max(sum(unit.parameters for unit in units) for units in chunks) * workload.weight_bytes
    message = batch * max((sample.units[stop - 1].sent for _, stop in ranges[:-1]), default=0) * workload.weight_bytes
    largest = max((math.prod(shape) for _, shape in tensors), default=0)
    # The tape holds all gradients of the stage when it ends, and its last activations when it begins.
    working = max(one_backward + 2 * largest * FLOAT, max(again, default=0)) + 4 * message * (layout.stages > 1)
    bucket = max(sizes, default=0)
    update = (state if fused else count * layout.optimizer_shard) + bucket  # scaled gradients, or the joined weights
    return RankMemory(
        parameters=count * workload.weight_bytes, optimizer=(3 if fused else 2) * state * FLOAT,
        gradients=count * FLOAT, reduced=state * FLOAT, activations=activations, working=working,
        communication=2 * HCCL_BUFFER * communicators(layout) if fused else 0, update=update * FLOAT,
        reserved=int(hardware.reserved), in_flight=max(sum(moment) for moment in moments),
        average=state * FLOAT if workload.keeps_average else 0)


def of_layout(workload: Workload, layout: Layout, hardware: Hardware) -> tuple[RankMemory, ...]:
    """By place in the pipeline, for the size of sample that takes most there."""
    ranges = layout.ranges(workload)
    return tuple(max((of_place(workload, sample, layout, ranges, place, hardware) for sample in workload.samples),
                     key=lambda memory: memory.peak) for place in range(layout.stages))
