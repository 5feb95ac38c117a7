"""One rank of tests/train/test_saver.py: trains with ZeRO-1 while rank 1's disk is full at step 4 and breaks at 8."""

import errno
import sys
from pathlib import Path

from mindglm.parallel import transport

if __name__ == "__main__":
    transport.init()
    from mindglm.checkpoint import store
    from mindglm.recipe import schema
    from tests.train import fake
    from tests.train.test_saver import recipe_of

    write = store.write_part

    def refusing(folder, *args):
        if transport.rank() == 1 and "00000004" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        if transport.rank() == 1 and "00000008" in folder.name:
            raise ValueError("a mistake in rank 1's writer")
        return write(folder, *args)

    store.write_part = refusing
    settings = recipe_of(Path(sys.argv[1]), steps=10, parallel_config=schema.ParallelSection(2, optimizer_shard=True),
                         lr_schedule=schema.LrScheduleSection(learning_rate=0.02, warmup_steps=2, lr_end=0.002,
                                                              total_steps=6))
    fake.make_trainer(settings).fit()
