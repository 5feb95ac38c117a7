"""What a training run asks of a machine, as numbers: the units of a model and what they cost. It knows no model.

`mindglm.models.workload` makes one of a recipe. All costs of a unit are those of one sample; those of a micro-batch
are so many times as much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What one pass through a unit does, for one sample."""

    linear: int = 0
    """FLOPs of products with weights (a multiply-add counts as two)."""
    attention: int = 0
    """FLOPs of scores and weighted sums, as executed."""
    moved: int = 0
    """Bytes that elementwise kernels, norms and softmax read and write."""
    launches: int = 0
    """Kernels, whatever the batch."""

    @property
    def flops(self) -> int:
        return self.linear + self.attention


@dataclass(frozen=True)
class Unit:
    """What can be put on a pipeline stage: an embedding, a layer, a head."""

    name: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """(name, shape) of its trained parameters."""
    forward: Work
    backward: Work
    model_flops: int
    """FLOPs of the forward pass that the model needs (causal attention: half of the scores); its share of the cut."""
    kept: int
    """Bytes kept for the backward pass."""
    kept_when_recomputed: int
    """The same when the unit's activations are computed again: its inputs."""
    sent: int
    """Numbers that travel on when the next unit lies on another stage."""
    can_recompute: bool = False

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors)


@dataclass(frozen=True)
class Sample:
    """One size of sample and its units' costs."""

    title: str
    """For instance 1024x1024."""
    share: float
    """Of the steps, all shares together 1: a micro-batch holds samples of one size."""
    tokens: int
    """Positions that pass the layers, padding included."""
    units: tuple[Unit, ...]
    cut_flops: tuple[int, ...]
    """Forward FLOPs by unit that the trainer balances stages with (sample without padding)."""
    host_bytes: int
    """Bytes that the host reads of a sample."""
    host_normals: int
    """Normal numbers that the host draws for a sample."""


@dataclass(frozen=True)
class Workload:
    """A run, but for its layout."""

    samples: tuple[Sample, ...]
    """By size; the stages are cut for the first, memory is that of the largest."""
    global_batch: int
    steps: int
    weight_bytes: int
    """Of a parameter on the device, and of a number that travels between stages: 2 or 4."""
    reduce_bytes: int
    """Of a number of a gradient that travels between ranks."""
    no_decay: tuple[str, ...]
    """Name fragments of parameters without weight decay; it orders the optimizer's buckets."""
    keeps_average: bool
    """Whether a moving average of the weights is kept."""
    compiled: bool
    """Whether the step is one compiled graph: no gradient travels beside its backward pass, and no stages run."""
    frozen: bool
    """Whether a part of the model is frozen: it then trains neither in stages nor with recomputation."""
    strict: bool
    """Whether equal bits are asked for: gradients then travel in float32."""
    checkpoint_interval: int
    checkpoints_kept: int
    notes: tuple[str, ...] = ()
    """What was assumed to make it."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """Of the first size; names and parameters are the same for all."""
        return self.samples[0].units

    @property
    def layers(self) -> int:
        """Units between the first and the last; a recipe may cut a model into as many parts."""
        return len(self.units) - 2

    @property
    def parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)


def mean(samples: Sequence[Sample], of) -> float:
    """The mean of of(sample) over the sizes by share."""
    return sum(sample.share * of(sample) for sample in samples)
