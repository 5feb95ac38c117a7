"""Balanced cuts are the best there are; explicit ones are checked."""

import itertools

import numpy as np
import pytest

from mindglm.errors import UserError
from mindglm.plan.cuts import balanced, explicit


def best_by_trial(costs, stages):
    """Smallest cost of the dearest stage, over all cuts."""
    inner = itertools.combinations(range(1, len(costs)), stages - 1)
    return min(max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cut, len(costs)))) for cut in inner)


def test_no_cut_is_better():
    rng = np.random.default_rng(0)
    for stages, units in itertools.product((1, 2, 3, 5), (5, 7, 9)):
        costs = rng.integers(0, 20, units).tolist()
        ranges = balanced(costs, stages)
        assert [a for a, _ in ranges] == [0, *[b for _, b in ranges[:-1]]] and ranges[-1][1] == units
        assert all(a < b for a, b in ranges)
        assert max(sum(costs[a:b]) for a, b in ranges) == best_by_trial(costs, stages)


def test_equal_layers_with_a_free_embedding_and_a_dear_head():
    assert balanced([0, *[10] * 8, 5], 2) == ((0, 5), (5, 10))
    assert balanced([0, *[10] * 7, 20], 3) == ((0, 4), (4, 7), (7, 9))


def test_early_stages_are_the_light_ones():
    assert balanced([1, 1, 1], 2) == ((0, 1), (1, 3))


def test_too_many_stages():
    with pytest.raises(UserError, match="3 units .* cannot be cut into 4"):
        balanced([1, 1, 1], 4)


def test_explicit():
    assert explicit([2, 3, 1], 6, 3) == ((0, 2), (2, 5), (5, 6))
    for counts in ([2, 3], [2, 3, 2], [0, 5, 1]):
        with pytest.raises(UserError, match="3 positive numbers that sum to the model's 6 units"):
            explicit(counts, 6, 3)
