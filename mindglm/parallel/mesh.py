"""Who stands where: data_parallel copies of a pipeline of pipeline_stage ranks. Pure functions of the two numbers.

Rank = copy * pipeline_stage + place in the pipeline: neighbours in a pipeline are neighbours in rank, so they share a
node whenever that can be. A node of 8 with pipelines of 8, 4 or 2 ranks is never left by an activation; a pipeline
longer than a node leaves it once per node. Gradients of a stage are summed across nodes instead: once a step, and
beside the backward pass where the backend allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mindglm.errors import UserError


@dataclass(frozen=True)
class Mesh:
    """data_parallel x pipeline_stage ranks."""

    data_parallel: int
    pipeline_stage: int

    @property
    def world(self) -> int:
        return self.data_parallel * self.pipeline_stage

    def check(self, world: int) -> None:
        """UserError unless `world` processes are what the mesh needs."""
        if world != self.world:
            raise UserError(
                f"parallel_config asks for data_parallel {self.data_parallel} x pipeline_stage {self.pipeline_stage} = "
                f"{self.world} processes, but {world} were started; start them with `bash launch/train_node.sh "
                "RECIPE` (or train_cluster.sh), which takes their number from the recipe, or change parallel_config")

    def data_index(self, rank: int) -> int:
        """Which copy of the pipeline, and so which share of the global batch."""
        return rank // self.pipeline_stage

    def stage(self, rank: int) -> int:
        """Which place in the pipeline."""
        return rank % self.pipeline_stage

    def data_ranks(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the same parameters as `rank`, in the order of copies."""
        return tuple(range(self.stage(rank), self.world, self.pipeline_stage))

    def pipeline_ranks(self, rank: int) -> tuple[int, ...]:
        """The ranks of the pipeline that `rank` is part of, first stage first."""
        start = self.data_index(rank) * self.pipeline_stage
        return tuple(range(start, start + self.pipeline_stage))

    def crossings(self, hosts: Sequence[str]) -> int:
        """Stage boundaries between two hosts, over all pipelines. hosts: of every rank."""
        total = 0
        for start in range(0, self.world, self.pipeline_stage):
            names = list(hosts[start:start + self.pipeline_stage])
            total = total + sum(here != there for here, there in zip(names, names[1:]))
        return total

    def table(self, hosts: Sequence[str], contents: Sequence[str] = ()) -> str:
        """What is printed at the start of a run: one line a rank, with its host and what its stage holds.

        contents: per place in the pipeline, e.g. "embedding, layers 0-9".
        """
        rows = [("rank", "host", "data_parallel", "pipeline_stage", "holds")]
        for rank in range(self.world):
            stage = self.stage(rank)
            rows.append((str(rank), hosts[rank], str(self.data_index(rank)), str(stage),
                         contents[stage] if contents else ""))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        boundaries = self.data_parallel * (self.pipeline_stage - 1)
        lines.append(f"{self.crossings(hosts)} of {boundaries} stage boundaries lie between two hosts")
        return "\n".join(lines)
