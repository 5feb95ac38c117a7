"""One rank of a leg of tests/train/test_chain.py: goes on with the run in its own layout, until it is killed or done.

    python tests/train/chain_worker.py FOLDER CASE [kill_after=N | kill_in_save=N]

CASE is json, as in tests/parallel/same_run_worker.py. kill_after: the last rank kills itself after step N.
kill_in_save: rank 0 kills itself when all is written of the checkpoint of step N but its name.
"""

import json
import os
import signal
import sys
from pathlib import Path

SAVE, STEPS = 4, 20


def trainer_of(case: dict, folder: Path):
    """The Trainer of a case that saves every 4 of 20 steps and hashes its weights at every one."""
    from tests.parallel import same_run_worker as runs

    return runs.trainer_of({"steps": STEPS, "save": SAVE, "ema": 0.8, "hash": 1, **case}, folder)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(trainer, step: int) -> None:
    """SIGKILL when this step is done with all that was due."""
    from mindglm.parallel import transport

    check = trainer._due

    def due():
        check()
        if trainer.counters.step == step and transport.rank() == transport.world() - 1:
            kill()

    trainer._due = due


def kill_in_save(step: int) -> None:
    """SIGKILL instead of the rename that gives the checkpoint of this step its name."""
    rename = os.rename

    def dying(source, target, **options):
        if Path(target).name == f"iteration_{step:08d}":
            kill()
        rename(source, target, **options)

    os.rename = dying


if __name__ == "__main__":
    from mindglm.parallel import transport

    transport.init()
    from mindglm import ops  # noqa: F401  (CPU launch mode)

    trainer = trainer_of(json.loads(sys.argv[2]), Path(sys.argv[1]))
    for word in sys.argv[3:]:
        how, step = word.split("=")
        if how == "kill_after":
            kill_after(trainer, int(step))
        else:
            kill_in_save(int(step))
    trainer.fit()
    transport.finish()
