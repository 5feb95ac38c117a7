"""Who stands where, and how rarely an activation leaves a node."""

import itertools

import pytest

from mindglm.errors import UserError
from mindglm.parallel.mesh import Mesh


@pytest.mark.parametrize("data, stages", list(itertools.product((1, 2, 3, 8), repeat=2)))
def test_every_rank_has_one_place(data, stages):
    mesh = Mesh(data, stages)
    places = {(mesh.data_index(rank), mesh.stage(rank)) for rank in range(mesh.world)}
    assert places == set(itertools.product(range(data), range(stages)))
    for rank in range(mesh.world):
        mates, line = mesh.data_ranks(rank), mesh.pipeline_ranks(rank)
        assert set(mates) & set(line) == {rank} and mates == tuple(sorted(mates)) and line == tuple(sorted(line))
        assert {mesh.stage(other) for other in mates} == {mesh.stage(rank)} and len(mates) == data
        assert [mesh.stage(other) for other in line] == list(range(stages))


def nodes(world, size=8):
    return [f"node{rank // size}" for rank in range(world)]


def best_crossings(data, stages, size=8):
    """Fewest boundaries between nodes: as many whole pipelines as fit in each node, the rest in as few pieces."""
    if stages > size:
        return data * (stages // size - 1)
    count = data * stages // size
    return data - count * (size // stages)


@pytest.mark.parametrize("data, stages", [(8, 1), (4, 2), (2, 4), (1, 8), (8, 8), (2, 16), (1, 64), (8, 3), (16, 2)])
def test_no_layout_crosses_nodes_less(data, stages):
    mesh = Mesh(data, stages)
    assert mesh.crossings(nodes(mesh.world)) == best_crossings(data, stages)


def test_table():
    text = Mesh(1, 3).table(["a", "a", "b"], ["embedding", "layers", "head"]).splitlines()
    assert text[0].split() == ["rank", "host", "data_parallel", "pipeline_stage", "holds"]
    assert text[3].split() == ["2", "b", "0", "2", "head"]
    assert text[-1] == "1 of 2 stage boundaries lie between two hosts"


def test_wrong_number_of_processes():
    Mesh(2, 4).check(8)
    with pytest.raises(UserError, match="data_parallel 2 x pipeline_stage 4 = 8 processes, but 4 were started"):
        Mesh(2, 4).check(4)
