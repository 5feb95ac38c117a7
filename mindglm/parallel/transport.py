"""Process groups and collectives: the only module that knows which exists on which backend (HCCL | MindSpore on CPU).

`msrun` starts one process a rank and describes the job in the environment (MS_ROLE, MS_WORKER_NUM, RANK_ID...).
Without it everything here is a no-op on a world of one. MindSpore is imported inside the functions, because the
scheduler process runs the same script and must not load more than it needs.
"""

import hashlib
import os
import pickle
import socket
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mindglm.errors import UserError

_world = (0, 1)
_groups: dict[tuple[int, ...], "Group"] = {}


def exit_if_scheduler() -> None:
    """In msrun's scheduler process: serve the job until its workers are done, then exit. Call before heavy imports."""
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        if os.environ.get("MINDGLM_NODE_RANK", "0") != "0":
            # msrun starts a scheduler wherever the master's address is a local one: also on a node that shares an
            # address with it (docker0, loopback). The one of node 0 serves all.
            sys.exit(0)
        os.environ.setdefault("MS_NODE_TIMEOUT", "11")  # seconds without a heartbeat until it gives a worker up
        from mindspore.communication import init

        init()
        sys.exit(0)


def init() -> tuple[int, int]:
    """Join the job that the environment describes; returns (rank, world size). Safe to call again.

    A worker that then dies of an exception prints it and leaves at once: MindSpore's own teardown would keep the
    process, and so the whole job, waiting for peers that will never come.
    """
    global _world
    if os.environ.get("MS_ROLE") != "MS_WORKER" or _world[1] > 1:
        return _world
    # One number limits a rank's silence and a collective's wait; compilation and checkpoints take longer than 30 s.
    os.environ.setdefault("MS_NODE_TIMEOUT", "600")
    # The launcher names processes, not ranks, when it says who died: mindglm triage puts the two together.
    print(f"mindglm: rank {os.environ.get('RANK_ID', '?')} of {os.environ.get('MS_WORKER_NUM', '?')} is process "
          f"{os.getpid()} on {socket.gethostname()}", file=sys.stderr, flush=True)
    from mindspore import communication

    _await_scheduler(float(os.environ.get("MS_TOPO_TIMEOUT", "600")))  # msrun's --cluster_time_out
    communication.init()
    sys.excepthook = _die  # after init, which sets its own
    _world = (communication.get_rank(), communication.get_group_size())
    return _world


def _await_scheduler(seconds: float) -> None:
    """Wait until the scheduler listens: a worker that asks MindSpore to register too early may loop for 20 to 60 s."""
    address = os.environ["MS_SCHED_HOST"], int(os.environ["MS_SCHED_PORT"])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise UserError(f"the scheduler at {address[0]}:{address[1]} did not answer for {seconds:.0f} s; look into its log "
                    "(scheduler.log) and check the address and port given to msrun")


def _die(kind, error, trace) -> None:
    rank = os.environ.get("RANK_ID", "?")
    text = "".join(traceback.format_exception(kind, error, trace))
    print(f"mindglm: rank {rank} failed\n{text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def rank() -> int:
    """This process's rank, 0 alone."""
    return _world[0]


def world() -> int:
    """Number of ranks, 1 alone."""
    return _world[1]


class TransportError(RuntimeError):
    """A collective or a transfer failed or timed out; says which, between whom, and after how long."""


@dataclass(frozen=True)
class Group:
    """Ranks that communicate among themselves; made by `group`, by its members only."""

    name: str
    """What MindSpore calls it; empty for a group of one, which needs none."""
    ranks: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def index(self) -> int:
        """This process's place among the ranks."""
        return self.ranks.index(_world[0])


def group(ranks) -> Group:
    """The group of `ranks` (rising). Call on every member and on no other rank: outsiders would wait for ever."""
    ranks = tuple(ranks)
    assert ranks == tuple(sorted(set(ranks))) and _world[0] in ranks, f"rank {_world[0]} asks for group {ranks}"
    if len(ranks) == 1:
        return Group("", ranks)
    if ranks not in _groups:
        from mindspore.communication import create_group

        if len(ranks) == _world[1]:
            name = _world_group()
        else:
            name = "mindglm_" + hashlib.sha1(repr(ranks).encode()).hexdigest()[:16]
            with named_failures("create_group", name, ranks):
                create_group(name, list(ranks))
        _groups[ranks] = Group(name, ranks)
    return _groups[ranks]


def _world_group() -> str:
    """hccl_world_group or mccl_world_group."""
    from mindspore.communication import GlobalComm

    return GlobalComm.WORLD_COMM_GROUP


def _of(group: Group | None) -> Group:
    return group or Group("" if _world[1] == 1 else _world_group(), tuple(range(_world[1])))


@contextmanager
def named_failures(operation: str, tag: str, peers):
    """Turn MindSpore's "Recv failed" and the like into a TransportError that names operation, tag and peers."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        peers = list(peers)
        others = f"rank {peers[0]}" if len(peers) == 1 else f"ranks {peers}"
        raise TransportError(
            f"rank {_world[0]}: {operation} of {tag} with {others} failed after {time.monotonic() - start:.1f} s "
            f"(MindSpore: {str(error).splitlines()[0]}; limit MS_NODE_TIMEOUT="
            f"{os.environ.get('MS_NODE_TIMEOUT', '30')} s). Look into the logs of these ranks for the first error; a "
            "rank that is slow, not dead, needs a larger MS_NODE_TIMEOUT") from error


def _has_scatter() -> bool:
    """HCCL has reduce_scatter and gather into one tensor; MindSpore's CPU backend has neither."""
    from mindglm import ops

    return ops.DEVICE == "ascend"


def all_reduce_sum(bucket, group: Group | None = None, tag: str = "bucket"):
    """Sum a flat float32 Tensor over a group (None: all ranks); every rank gets the same bits.

    The sum takes `bucket`'s place.
    """
    members = _of(group)
    if members.size > 1:
        from mindspore.mint.distributed import all_reduce

        with named_failures("all_reduce", tag, members.ranks):
            all_reduce(bucket, group=members.name)
    return bucket


def begin_all_reduce_sum(bucket, group: Group | None = None, tag: str = "bucket"):
    """As all_reduce_sum, but returns at once a function that waits and gives the sum.

    It runs beside later computation on HCCL; MindSpore's CPU backend in blocking mode does it on the spot.
    """
    members = _of(group)
    if members.size == 1:
        return lambda: bucket
    from mindspore.mint.distributed import all_reduce

    with named_failures("all_reduce", tag, members.ranks):
        handle = all_reduce(bucket, group=members.name, async_op=True)

    def wait():
        with named_failures("all_reduce", tag, members.ranks):
            handle.wait()
        return bucket

    return wait


def begin_reduce_scatter_sum(flat, group: Group | None = None, tag: str = "bucket"):
    """Returns at once a function that waits and gives this rank's part (flat.size / group size elements, by its index)
    of the sum of the ranks' flat Tensors. Beside later computation as begin_all_reduce_sum.
    """
    members = _of(group)
    assert flat.shape[0] % members.size == 0, f"{flat.shape[0]} elements over {members.size} ranks"
    if members.size == 1:
        return lambda: flat
    from mindspore import mint

    part = flat.shape[0] // members.size
    if not _has_scatter():
        start, wait_for_all = members.index * part, begin_all_reduce_sum(flat.copy(), members, tag)
        return lambda: wait_for_all()[start:start + part]
    mine = mint.zeros((part,), dtype=flat.dtype)
    with named_failures("reduce_scatter", tag, members.ranks):
        handle = mint.distributed.reduce_scatter_tensor(mine, flat, group=members.name, async_op=True)

    def wait(_=flat):  # held until the collective has read it
        with named_failures("reduce_scatter", tag, members.ranks):
            handle.wait()
        return mine

    return wait


def all_gather(flat, group: Group | None = None, tag: str = "bucket"):
    """The ranks' flat Tensors (same length and dtype) one after the other, on every rank."""
    members = _of(group)
    if members.size == 1:
        return flat
    from mindspore import mint

    with named_failures("all_gather", tag, members.ranks):
        if _has_scatter():
            joined = mint.zeros((members.size * flat.shape[0],), dtype=flat.dtype)
            mint.distributed.all_gather_into_tensor(joined, flat, group=members.name)
            return joined
        parts = [mint.zeros(flat.shape, dtype=flat.dtype) for _ in members.ranks]
        mint.distributed.all_gather(parts, flat, group=members.name)
        return mint.cat(parts)


def broadcast(tensor, source: int, group: Group | None = None, tag: str = "tensor"):
    """The Tensor of rank `source` (its number in the world) on every rank; it takes `tensor`'s place."""
    members = _of(group)
    if members.size > 1:
        from mindspore.mint.distributed import broadcast as spread

        with named_failures("broadcast", tag, members.ranks):
            spread(tensor, source, group=members.name)
    return tensor


def sum_scalar(value: float, group: Group | None = None) -> float:
    """Sum of a host number over the ranks (float32)."""
    return value if _of(group).size == 1 else float(_reduced(np.array([value], np.float32), group, "a number")[0])


def barrier(group: Group | None = None) -> None:
    """Wait until every rank is here (MindSpore's own barrier complains on CPU)."""
    if _of(group).size > 1:
        _reduced(np.ones(1, np.float32), group, "a barrier")


def broadcast_object(value, group: Group | None = None):
    """The `value` (picklable) of the group's first rank on every rank."""
    members = _of(group)
    return value if members.size == 1 else gather_objects(value if members.index == 0 else None, group)[0]


def gather_objects(value, group: Group | None = None) -> list:
    """The ranks' values (picklable) in the order of ranks, on each."""
    if _of(group).size == 1:
        return [value]
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = gather(np.array([mine.size], np.int32), group)
    box = np.zeros((1, -(-sizes.max() // 3)), np.int32)  # three bytes a number: sums with zeros stay exact
    padded = np.zeros(3 * box.shape[1], np.int32)
    padded[:mine.size] = mine
    box[0] = padded.reshape(-1, 3) @ np.array([1, 1 << 8, 1 << 16], np.int32)
    rows = gather(box, group)
    return [pickle.loads(np.stack([row & 255, row >> 8 & 255, row >> 16], 1).astype(np.uint8).tobytes()[:size])
            for row, size in zip(rows, sizes)]


def gather(array: np.ndarray, group: Group | None = None) -> np.ndarray:
    """The ranks' arrays (same shape and dtype: float32 or int32) joined on axis 0, in the order of ranks, on each."""
    members = _of(group)
    if members.size == 1:
        return array
    slots = np.zeros((members.size, *array.shape), array.dtype)
    slots[members.index] = array
    return _reduced(slots, group, "arrays").reshape(-1, *array.shape[1:])


def _reduced(array: np.ndarray, group: Group | None, tag: str) -> np.ndarray:
    from mindspore import Tensor

    return all_reduce_sum(Tensor(array), group, tag).asnumpy().copy()


def finish() -> None:
    """End of a run: no rank leaves while another still communicates."""
    barrier()
