"""One rank of a job that goes wrong on purpose: `sabotaged_worker.py HOW`. Rank 1 is struck, the others sum on."""

import ctypes
import errno
import os
import resource
import signal
import sys
import time

from mindglm.errors import UserError
from mindglm.parallel import transport


def raise_error():
    raise ValueError("rank 1 has had enough")


def exit_silently():
    os._exit(3)


def leave_early():
    os._exit(0)


def hang():
    time.sleep(600)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def segfault():
    ctypes.string_at(0)


def host_memory():
    """What a machine without memory to spare answers, for this process only."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(4 << 30)


def eat_memory():
    """Until the kernel's out-of-memory killer comes: only under a memory limit of a control group."""
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(1 << 20)) * 16)


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "output/checkpoint/.staging/model.safetensors")


def missing_op():
    import numpy as np
    from mindspore import Tensor, mint

    mint.einsum("ij,jk->ik", Tensor(np.ones((2, 2), np.float32)), Tensor(np.ones((2, 2), np.float32)))


def mistake():
    """As mindglm.train.trainer ends a rank whose recipe or data are wrong."""
    print(f"mindglm: {UserError('train_dataset.dataset_dir: no such folder: data/none; expected one of prepare')}",
          file=sys.stderr, flush=True)
    os._exit(2)


STRIKES = {strike.__name__: strike for strike in (
    raise_error, exit_silently, leave_early, hang, killed, segfault, host_memory, eat_memory, disk_full, missing_op,
    mistake)}


def main(how: str) -> None:
    before = how.startswith("early_")
    strike = STRIKES.get(how.removeprefix("early_"))  # none: nothing goes wrong
    transport.exit_if_scheduler()
    if before and strike and os.environ["RANK_ID"] == "1":
        strike()
    transport.init()
    for step in range(8):
        total = transport.sum_scalar(1.0)
        print(f"step {step}: {total:.0f} ranks", flush=True)
        if strike and transport.rank() == 1 and step == 3:
            strike()
    transport.finish()


if __name__ == "__main__":
    main(sys.argv[1])
