"""Sample order and draws over the grid of sizes, and independence of everything but their arguments."""

import subprocess
import sys

import numpy as np
import pytest

from mindglm import order


@pytest.mark.parametrize("n", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("batch", [1, 2, 7, 16, 50])
def test_every_epoch_holds_every_sample_once(n, batch):
    steps = -(-4 * n // batch) + 1
    stream = np.concatenate([order.batch_ids(3, step, batch, n) for step in range(steps)])
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n:(epoch + 1) * n]) == list(range(n))
        assert np.array_equal(stream[epoch * n:(epoch + 1) * n], order.epoch_order(3, epoch, n))


def test_epochs_and_seeds_differ():
    orders = {tuple(order.epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_any_step_can_be_asked_alone():
    later = order.batch_ids(1, 500, 8, 100)
    for step in range(500):
        order.batch_ids(1, step, 8, 100)
    assert np.array_equal(order.batch_ids(1, 500, 8, 100), later)


def test_draws_depend_on_every_argument_and_on_nothing_else():
    base = order.rng(1, 2, 3, "noise").standard_normal(4)
    assert np.array_equal(base, order.rng(1, 2, 3, "noise").standard_normal(4))
    for other in ((0, 2, 3, "noise"), (1, 0, 3, "noise"), (1, 2, 0, "noise"), (1, 2, 3, "crop"), (1, 23, 3, "noise")):
        assert not np.array_equal(base, order.rng(*other).standard_normal(4))
    assert np.array_equal(base, order.rng(np.int64(1), np.int32(2), np.int64(3), "noise").standard_normal(4))


def test_draws_are_the_same_in_another_process():
    """No hash randomisation, no global state: the numbers are pinned by another interpreter."""
    code = """from mindglm import order
print(order.rng(5, 6, 7, 'x').integers(2**60), order.batch_ids(5, 9, 6, 40).tolist())"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{order.rng(5, 6, 7, 'x').integers(2**60)} {order.batch_ids(5, 9, 6, 40).tolist()}"


def test_shared_permutation_cannot_be_written():
    with pytest.raises(ValueError):
        order.epoch_order(0, 0, 5)[0] = 1
