"""The planner's clock: it agrees with the schedule's own table to the unit, and its short cuts with the long way."""

import itertools
import random

import pytest

from mindglm.plan import schedules, simulation
from mindglm.plan.simulation import Costs

GRID = [(kind, p, m, 1) for kind in ("gpipe", "1f1b", "zb_h1") for p, m in itertools.product(range(1, 7), range(1, 15))]
GRID += [("interleaved", p, m, v) for p, m, v in itertools.product(range(1, 6), range(1, 13), (1, 2, 3))]


def test_a_played_schedule_is_its_table():
    """Equal stages, quick transfers: the same order, length and bubble as `schedules.build`, exactly."""
    for kind, p, m, v in GRID:
        table = schedules.build(kind, p, m, v)
        assert simulation.orders(kind, p, m, v) == simulation.of_table(table), (kind, p, m, v)
        step = simulation.play(kind, p, m, v, Costs((1.0,) * (p * v), (2.0,) * (p * v)), draw=True)
        assert step.seconds == table.makespan and step.bubble == pytest.approx(table.bubble(), abs=1e-12)
        starts = {(rank, a.kind, a.chunk, a.micro_batch): a.time for rank, actions in enumerate(table.actions)
                  for a in actions if a.kind in schedules.UNITS}
        assert {(s.rank, s.kind, s.chunk, s.micro_batch): s.start for s in step.spans} == starts


def test_the_bubble_in_closed_form_is_that_of_the_table():
    for kind, p, m, v in GRID:
        assert simulation.bubble(kind, p, m, v) == pytest.approx(schedules.build(kind, p, m, v).bubble(), abs=1e-12)


def test_unequal_stages_by_hand():
    """Two stages, the second twice as slow, two micro-batches, 1f1b."""
    step = simulation.play("1f1b", 2, 2, 1, Costs((1.0, 2.0), (2.0, 4.0)), draw=True)
    # rank 0: F0 0-1, F1 1-2; rank 1: F0 1-3, B0 3-7, F1 7-9, B1 9-13; rank 0: B0 7-9, B1 13-15
    assert step.seconds == 15 and step.ends == (15, 13) and step.busy == (6, 12)
    assert [(s.kind, s.start) for s in step.spans if s.rank == 1] == [("F", 1), ("B", 3), ("F", 7), ("B", 9)]


def test_transfers_by_hand():
    """A value takes a unit of time to its neighbour; messages of one link follow each other."""
    step = simulation.play("gpipe", 2, 2, 1, Costs((1.0, 1.0), (1.0, 1.0), (3.0,)), draw=True)
    # F0 ends at 1 and is there at 4; F1 ends at 2, its message waits for the link and is there at 7
    assert [s.start for s in step.spans if (s.rank, s.kind) == (1, "F")] == [4, 7]
    assert [s.start for s in step.spans if (s.rank, s.kind) == (0, "B")] == [12, 15] and step.seconds == 16


def test_no_transfer_within_a_rank():
    """Chunks on one rank hand on without a link."""
    assert simulation.play("interleaved", 1, 3, 2, Costs((1.0, 1.0), (2.0, 2.0), (9.0,))).seconds == 18


def random_case(rng):
    v = rng.choice([1, 1, 2, 3])
    kind = "interleaved" if v > 1 else rng.choice(["gpipe", "1f1b", "interleaved"])
    p, m = rng.randint(1, 8), rng.randint(1, 60)
    units = range(p * v)
    return kind, p, m, v, Costs(tuple(rng.uniform(0.5, 1.5) for _ in units), tuple(rng.uniform(1, 3) for _ in units),
                                tuple(rng.choice([0, 0.05, 0.3]) for _ in units))


def test_short_cuts():
    """The extrapolated length is within 3 % of the played one; nothing is shorter than `least`."""
    rng = random.Random(0)
    for _ in range(120):
        kind, p, m, v, costs = random_case(rng)
        seconds = simulation.play(kind, p, m, v, costs).seconds
        assert simulation.seconds(kind, p, m, v, costs) == pytest.approx(seconds, rel=0.03), (kind, p, m, v)
        assert simulation.least(m, p, v, costs) <= seconds * (1 + 1e-12)


def test_orders_that_wait_for_each_other_are_found():
    with pytest.raises(AssertionError, match="wait for each other"):
        simulation.play_orders([[("B", 0, 0), ("F", 0, 0)], [("F", 0, 0), ("B", 0, 0)]], 1, Costs((1.0, 1.0), (2.0, 2)))
