"""Where this process stands in a run: its share of the data, its stage of the model, and whom it talks to for each."""

from dataclasses import dataclass

from mindglm.parallel import transport
from mindglm.parallel.mesh import Mesh


@dataclass(frozen=True)
class Layout:
    """`data_parallel` x `stages` processes. Groups are transport's handles; None is all processes."""

    data_index: int = 0
    """Which share of the global batch this process computes on."""
    data_parallel: int = 1
    stage: int = 0
    """Which part of the model it holds."""
    stages: int = 1
    data_group: object = None
    """The processes that hold the same part of the model, ordered by data_index."""
    stage_group: object = None
    """The processes that compute on the same data, ordered by stage."""

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.data_parallel * self.stages


def here(parallel) -> Layout:
    """This process's place by the recipe's parallel_config. All processes of the job call it.

    Raises UserError when the job has another number of processes.
    """
    mesh, (rank, world) = Mesh(parallel.data_parallel, parallel.pipeline_stage), transport.init()
    mesh.check(world)
    data_group = stage_group = None
    if mesh.pipeline_stage > 1:  # else the data-parallel group is all processes
        data_group = transport.group(mesh.data_ranks(rank))
        stage_group = transport.group(mesh.pipeline_ranks(rank))
    return Layout(mesh.data_index(rank), mesh.data_parallel, mesh.stage(rank), mesh.pipeline_stage, data_group,
                  stage_group)
