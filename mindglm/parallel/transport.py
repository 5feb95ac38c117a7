"""Process groups and collectives: the only module that knows which exists on which backend (HCCL | MindSpore on CPU).

`msrun` starts one process a rank and describes the job in the environment (MS_ROLE, MS_WORKER_NUM, RANK_ID...).
Without it everything here is a no-op on a world of one. MindSpore is imported inside the functions, because the
scheduler process runs the same script and must not load more than it needs.
"""

import os
import pickle
import socket
import sys
import time
import traceback

import numpy as np

from mindglm.errors import UserError

_world = (0, 1)


def exit_if_scheduler() -> None:
    """In msrun's scheduler process: serve the job until its workers are done, then exit. Call before heavy imports."""
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        os.environ.setdefault("MS_NODE_TIMEOUT", "15")  # seconds without a heartbeat until it gives a worker up
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
    from mindspore import communication

    _await_scheduler()
    communication.init()
    sys.excepthook = _die  # after init, which sets its own
    _world = (communication.get_rank(), communication.get_group_size())
    return _world


def _await_scheduler(seconds: float = 600.0) -> None:
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


def all_reduce_sum(bucket):
    """Sum a flat float32 Tensor over the ranks; every rank gets the same bits. The sum takes `bucket`'s place."""
    if _world[1] > 1:
        from mindspore.mint.distributed import all_reduce

        all_reduce(bucket)
    return bucket


def sum_scalar(value: float) -> float:
    """Sum of a host number over the ranks (float32)."""
    return value if _world[1] == 1 else float(_reduced(np.array([value], np.float32))[0])


def barrier() -> None:
    """Wait until every rank is here (MindSpore's own barrier has no CPU kernel)."""
    sum_scalar(1.0)


def broadcast_object(value):
    """Rank 0's `value` (picklable) on every rank."""
    if _world[1] == 1:
        return value
    mine = np.frombuffer(pickle.dumps(value), np.uint8) if _world[0] == 0 else np.empty(0, np.uint8)
    size = int(_reduced(np.array([mine.size], np.int32))[0])
    box = np.zeros(size, np.int32)
    box[:mine.size] = mine
    return pickle.loads(_reduced(box).astype(np.uint8).tobytes())


def gather(array: np.ndarray) -> np.ndarray:
    """The ranks' arrays (same shape and dtype: float32 or int32) joined on axis 0, in the order of ranks, on each."""
    if _world[1] == 1:
        return array
    slots = np.zeros((_world[1], *array.shape), array.dtype)
    slots[_world[0]] = array
    return _reduced(slots).reshape(-1, *array.shape[1:])


def _reduced(array: np.ndarray) -> np.ndarray:
    from mindspore import Tensor

    return all_reduce_sum(Tensor(array)).asnumpy().copy()


def finish() -> None:
    """End of a run: no rank leaves while another still communicates."""
    barrier()
