"""What every rank of a job checks of the transport, for any number of ranks; called by pipeline_worker.py."""

import numpy as np
from mindspore import Tensor

from mindglm.parallel import collect, transport
from mindglm.parallel.mesh import Mesh
from mindglm.parallel.transport_peers import Peers


def check_all() -> None:
    rank, world = transport.rank(), transport.world()
    check_collectives(transport.group(range(world)))
    check_collectives(None)
    check_objects(None)
    alone = transport.group([rank])
    assert alone.size == 1 and transport.gather_objects("x", alone) == ["x"]
    if world == 4:
        mesh = Mesh(2, 2)
        for ranks in (mesh.data_ranks(rank), mesh.pipeline_ranks(rank)):
            group = transport.group(ranks)
            assert transport.group(ranks) is group and group.ranks[group.index] == rank
            check_collectives(group)
            check_objects(group)
            check_collected(group)
    check_collected(None)
    check_peers()


def check_collectives(group) -> None:
    ranks = group.ranks if group else tuple(range(transport.world()))
    rank, index, size = transport.rank(), ranks.index(transport.rank()), len(ranks)

    def mine(of):
        return np.arange(4 * size, dtype=np.float32) + 100 * of

    total = sum(mine(other) for other in ranks)
    assert (transport.all_reduce_sum(Tensor(mine(rank)), group).asnumpy() == total).all()
    assert (transport.begin_all_reduce_sum(Tensor(mine(rank)), group)().asnumpy() == total).all()
    given = Tensor(mine(rank))
    part = transport.begin_reduce_scatter_sum(given, group)()
    assert (part.asnumpy() == total[4 * index:4 * index + 4]).all() and (given.asnumpy() == mine(rank)).all()
    assert (transport.all_gather(part, group).asnumpy() == total).all()
    assert (transport.broadcast(Tensor(mine(rank)), ranks[-1], group).asnumpy() == mine(ranks[-1])).all()
    assert transport.sum_scalar(rank, group) == sum(ranks)
    assert transport.gather(np.full((1, 2), rank, np.int32), group)[:, 1].tolist() == list(ranks)
    transport.barrier(group)


def check_objects(group) -> None:
    ranks = group.ranks if group else tuple(range(transport.world()))
    found = transport.gather_objects({"rank": transport.rank(), "text": "\u00e9" * (1 + 50 * transport.rank())}, group)
    assert [(one["rank"], len(one["text"])) for one in found] == [(rank, 1 + 50 * rank) for rank in ranks]
    assert transport.broadcast_object([transport.rank()], group) == [ranks[0]]


def check_collected(group) -> None:
    """Arrays of all sizes and shapes, in messages of at most three numbers, come to the first rank whole."""
    ranks = group.ranks if group else tuple(range(transport.world()))

    def held(rank):
        return {f"{rank}.{size}": np.arange(rank, rank + size, dtype=np.float32).reshape(shape)
                for size, shape in ((7, (7,)), (6, (2, 3)), (1, ()), (0, (0, 2)))}

    whole = collect.on_first(held(transport.rank()), group, piece=3)
    expected = [held(transport.rank())] if transport.rank() != ranks[0] else [held(rank) for rank in ranks]
    expected = {name: array for part in expected for name, array in part.items()}
    assert list(whole) == list(expected)
    for name, array in expected.items():
        assert whole[name].shape == array.shape and (whole[name] == array).all(), name


def check_peers() -> None:
    """Around the ring, three messages each way, taken out of order; empty parts do not travel."""
    rank, world = transport.rank(), transport.world()
    ahead, behind = (rank + 1) % world, (rank - 1) % world
    peers = Peers()
    for i in range(3):
        peers.send((Tensor(np.full((2, i + 1), rank, np.float32)), Tensor(np.zeros((0, 2), np.float32)),
                    Tensor(np.array([i], np.int32))), ahead, f"up {i}")
    for i in range(3):
        peers.post((((2, i + 1), Tensor(0.0).dtype), ((0, 2), Tensor(0.0).dtype), ((1,), Tensor([1]).int().dtype)),
                   behind, f"up {i}")
    for i in (1, 0, 2):
        value, empty, number = peers.take(behind, f"up {i}")
        assert (value.asnumpy() == behind).all() and value.shape == (2, i + 1) and empty.shape == (0, 2)
        assert number.asnumpy().tolist() == [i]
    peers.finish()
