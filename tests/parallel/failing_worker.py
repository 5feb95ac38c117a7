"""One rank of a job whose rank 1 fails or is told to stop in mid-run."""

import os
import signal
import sys

from mindglm.parallel import transport

if __name__ == "__main__":
    how, folder = sys.argv[1:]
    transport.init()
    from tests.parallel.curve_worker import settings
    from tests.train import fake

    recipe = settings(folder, transport.world())
    trainer = fake.make_trainer(recipe, held_out=fake.Dataset(20, offset=300))
    step = trainer._step

    def struck(*args):
        if transport.rank() == 1 and trainer.counters.step == 6:
            if how == "raise":
                raise ValueError("rank 1 has had enough")
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    struck.evaluate = step.evaluate
    trainer._step = struck
    trainer.fit()
