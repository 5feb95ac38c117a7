"""The part of a model that one process of a pipeline holds."""

from dataclasses import dataclass

from mindspore import nn


@dataclass(frozen=True)
class Parts:
    """Which units of a model (`stages.unit_names`) this process holds."""

    ranges: tuple[tuple[int, int], ...]
    """(first, one past the last) of every stage, chunk 0 first."""
    recompute: frozenset[int] = frozenset()
    """Numbers of the units, in the whole model, whose activations are computed again in the backward pass."""


class StageList(nn.Cell):
    """Stages as one Cell, for the eyes of whoever asks for parameters; the pipeline's executor runs `stages`."""

    def __init__(self, stages: list):
        super().__init__(auto_prefix=False)  # keeps the released parameter names
        for i, stage in enumerate(stages):
            setattr(self, f"chunk_{i}", stage)

    @property
    def stages(self) -> list:
        """Chunk 0 first."""
        return list(self.cells())
