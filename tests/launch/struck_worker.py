"""One rank of a real job that is struck once: `struck_worker.py HOW FOLDER`, HOW: none, init, step, save, raise."""

import os
import signal
import sys
import time
from pathlib import Path

from mindglm.parallel import transport

how, folder = sys.argv[1], Path(sys.argv[2])
RANK = os.environ["RANK_ID"]


def strike():
    """End this process, the first time only; FOLDER/struck tells when it was."""
    if not (folder / "struck").exists():
        (folder / "struck").write_text(str(time.time()))
        if how == "raise":
            raise ValueError("rank 1 has had enough")
        os.kill(os.getpid(), signal.SIGKILL)


def main():
    transport.exit_if_scheduler()
    folder.mkdir(exist_ok=True)
    if how == "init" and RANK == "1":
        strike()
    transport.init()
    from tests.parallel.curve_worker import settings
    from tests.train import fake

    class Dataset(fake.Dataset):
        def __getitem__(self, i):
            self.taken = getattr(self, "taken", 0) + 1
            if how in ("step", "raise") and RANK == "1" and self.taken == 30:  # of 48 in its 12 steps
                strike()
            if how == "slow":
                time.sleep(0.3)
            return super().__getitem__(i)

    rename = os.rename

    def renamed(source, target):
        """The last act of a save is to rename its folder: rank 0's second save never comes to it."""
        if how == "save" and Path(target).name == "iteration_00000010":
            strike()
        rename(source, target)

    os.rename = renamed
    trainer = fake.make_trainer(settings(folder, transport.world()), held_out=fake.Dataset(20, offset=300),
                                dataset=Dataset())
    trainer.fit()
    transport.finish()


if __name__ == "__main__":
    main()
