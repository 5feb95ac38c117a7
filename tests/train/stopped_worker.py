"""One rank of tests/train/test_saver.py: a run of two that stops with a capsule while a slow save is under way."""

import sys
import time
from pathlib import Path

from mindglm.parallel import transport

if __name__ == "__main__":
    transport.init()
    from mindglm.checkpoint import store
    from mindglm.errors import UserError
    from mindglm.recipe import schema
    from tests.train import fake

    write = store.write_part

    def slowly(folder, *args):
        time.sleep(1)
        return write(folder, *args)

    store.write_part = slowly
    trainer = fake.make_trainer(fake.make_recipe(
        Path(sys.argv[1]), checkpoint=schema.CheckpointSection(save_checkpoint_steps=4, async_save=True),
        parallel_config=schema.ParallelSection(2), runner_wrapper=schema.RunnerWrapperSection(max_skipped_steps=0)))
    due = trainer._due

    def spoil():
        due()
        if trainer.counters.step == 4:
            trainer.objective.bad_samples = set(range(40))

    trainer._due = spoil
    trainer.batches.take = lambda step, last: trainer.batches.make(step)  # none is made ahead
    try:
        trainer.fit()
    except UserError as error:
        assert "step 5" in str(error), error
        transport.finish()
    else:
        raise AssertionError("the run did not stop")
