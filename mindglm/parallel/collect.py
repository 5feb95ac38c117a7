"""Named arrays of several ranks on the first of them, in pieces: no rank needs room beyond what it ends up with."""

import numpy as np
from mindspore import Tensor
from mindspore import float32 as ms_float32

from mindglm.parallel import transport

PIECE = 2**24
"""Elements of a message, 64 MB."""


def on_first(arrays: dict[str, np.ndarray], group: transport.Group | None = None,
             piece: int = PIECE) -> dict[str, np.ndarray]:
    """The float32 arrays of all ranks of a group on its first rank; elsewhere the rank's own. No name comes twice.

    Called by all ranks of the group (None: all ranks).
    """
    listed = transport.gather_objects([(name, array.shape) for name, array in arrays.items()], group)
    if len(listed) == 1:
        return arrays
    from mindglm.parallel.transport_peers import Peers

    ranks = group.ranks if group else range(transport.world())
    wrong = [name for name, array in arrays.items() if array.dtype != np.float32]
    assert not wrong, f"not float32: {wrong[:3]}"
    peers = Peers()
    if transport.rank() != ranks[0]:
        for name, array in arrays.items():
            flat = np.ascontiguousarray(array).reshape(-1)
            for start in range(0, flat.size, piece):
                peers.send((Tensor(flat[start:start + piece]),), ranks[0], f"{name} from element {start}")
        peers.finish()
        return arrays
    whole = dict(arrays)
    for rank, names in zip(ranks[1:], listed[1:]):
        for name, shape in names:
            assert name not in whole, f"{name} comes from two ranks"
            whole[name] = _receive(peers, rank, name, shape, piece)
    peers.finish()
    return whole


def _receive(peers, rank: int, name: str, shape: tuple[int, ...], piece: int) -> np.ndarray:
    flat = np.empty(int(np.prod(shape)), np.float32)
    for start in range(0, flat.size, piece):
        tag = f"{name} from element {start}"
        size = min(piece, flat.size - start)
        peers.post((((size,), ms_float32),), rank, tag)
        flat[start:start + size] = peers.take(rank, tag)[0].asnumpy()
    return flat.reshape(shape)
