"""One rank of tests/parallel/test_two_workers.py: checks the collectives, then trains the fake objective."""

import sys
from pathlib import Path

import numpy as np

from mindglm.parallel import transport

STEPS = 12


def settings(output_dir, world):
    """The recipe both sides of the comparison run."""
    from mindglm.recipe import schema
    from tests.train import fake

    return fake.make_recipe(
        output_dir, steps=STEPS, batch=8, accumulation=2, save=5, ema=0.8,
        parallel_config=schema.ParallelSection(data_parallel=world),
        validation=schema.ValidationSection(eval_step_interval=4, eval_samples=9))


def train(output_dir, world):
    """The fitted trainer; sample 0 is not finite, so one step of each epoch is skipped."""
    from tests.train import fake

    objective = fake.Objective()
    objective.bad_samples = {0}
    trainer = fake.make_trainer(settings(output_dir, world), objective, held_out=fake.Dataset(20, offset=300))
    trainer.fit()
    return trainer


def check_collectives():
    rank, world = transport.rank(), transport.world()
    assert (rank, world) == transport.init(), "a second init must change nothing"
    mine = np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * rank
    joined = transport.gather(mine)
    assert joined.shape == (4, 3) and joined[2, 0] == 10, joined
    assert transport.gather(np.array([rank], np.int32)).tolist() == [0, 1]
    assert transport.broadcast_object({"step": rank, "text": "é"}) == {"step": 0, "text": "é"}
    assert transport.broadcast_object([]) == []
    assert transport.sum_scalar(rank + 1.0) == 3.0


if __name__ == "__main__":
    transport.init()
    from mindglm import ops  # noqa: F401  (CPU launch mode)

    check_collectives()
    folder = Path(sys.argv[1])
    trained = train(folder, transport.world())
    np.savez(folder / f"rank_{transport.rank()}.npz", average=trained.ema.average, **{
        name: parameter.asnumpy() for name, parameter in trained.parameters.items()})
    transport.finish()
