"""Bytes that a rank hands to the transport in one optimizer step."""

from dataclasses import dataclass

from mindglm.plan.layout import Layout
from mindglm.plan.memory import buckets, owned
from mindglm.plan.workload import Sample, Workload

FLOAT = 4
AGREED = 5
"""Numbers that all ranks add up after the gradients: loss, weight, squared norm, two requests to stop."""


@dataclass(frozen=True)
class Traffic:
    """Of one rank. A collective's own algorithm moves more or less; this is what it is given."""

    activations: int
    """Sent to the next stages, all micro-batches."""
    gradients_of_activations: int
    """Sent back."""
    gradients: int
    """Given to the sums over data-parallel ranks."""
    weights: int
    """Given by this rank to the gathering of the weights (ZeRO-1)."""
    agreed: int
    """Given to the sum of loss and norm."""


def of_place(workload: Workload, sample: Sample, layout: Layout, ranges, place: int) -> Traffic:
    """The traffic of one place in the pipeline for micro-batches of one size of sample."""
    batch, last = layout.micro_batch(workload), layout.parts - 1
    forward = backward = 0
    for part in range(place, layout.parts, layout.stages):
        if layout.stages > 1 and part < last:
            forward = forward + sample.units[ranges[part][1] - 1].sent
        if layout.stages > 1 and part > 0:
            backward = backward + sample.units[ranges[part - 1][1] - 1].sent
    tensors = [tensor for start, stop in ranges[place::layout.stages] for unit in sample.units[start:stop]
               for tensor in unit.tensors]
    sizes = buckets(tensors, workload.no_decay)
    shards = layout.data_parallel if layout.optimizer_shard else 1
    part_of_each = owned(sizes, shards)
    times = layout.micro_batches * batch * workload.weight_bytes
    return Traffic(
        activations=forward * times, gradients_of_activations=backward * times,
        gradients=part_of_each * shards * workload.reduce_bytes if layout.data_parallel > 1 else 0,
        weights=part_of_each * workload.weight_bytes if shards > 1 else 0,
        agreed=AGREED * FLOAT if layout.devices > 1 else 0)
