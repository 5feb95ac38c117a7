"""Every table is proven by the verifier, takes the time its formula says, and keeps the memory it is chosen for."""

import itertools

import pytest

from mindglm.errors import UserError
from mindglm.plan import schedules
from mindglm.plan.verifier import verify

WHOLE, SPLIT = 3, 3
"""Time of a micro-batch on a stage: F + B = 1 + 2, or F + B + W = 1 + 1 + 1."""


def prove(kind: str, ranks: int, m: int, chunks: int) -> None:
    schedule = schedules.build(kind, ranks, m, chunks)
    proof = verify(schedule)
    if kind in ("gpipe", "1f1b") or kind == "interleaved" and chunks == 1:
        assert schedule.makespan == WHOLE * (m + ranks - 1)
    elif kind == "interleaved":
        full = -(-m // ranks) * ranks  # a last group that is not full costs at most as much as a full one
        longest = WHOLE * (chunks * full + ranks - 1)
        assert schedule.makespan == longest if full == m else schedule.makespan <= longest
    else:
        assert schedule.makespan == (SPLIT * m + ranks - 1 if m >= ranks else 2 * m + 2 * ranks - 1)
    if kind == "1f1b":
        assert proof.in_flight == tuple(min(m, ranks - rank) for rank in range(ranks))


def prove_all(ranks, micro_batches, chunk_counts):
    for p, m in itertools.product(ranks, micro_batches):
        for kind in ("gpipe", "1f1b", "zb_h1"):
            prove(kind, p, m, 1)
        for chunks in chunk_counts:
            prove("interleaved", p, m, chunks)
            forward = schedules.forward_only(p, m, chunks)
            assert verify(forward).in_flight == (0,) * p


def test_every_small_table_is_proven():
    prove_all(range(1, 5), range(1, 9), (1, 2, 3))


def test_some_large_tables_are_proven():
    for kind, chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved", 4), ("interleaved", 3), ("zb_h1", 1)):
        for m in (5, 17):
            prove(kind, 8, m, chunks)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", range(1, 9))
def test_every_table_is_proven(ranks):
    """Exhaustively: up to 8 ranks, 32 micro-batches and 4 chunks a rank (2,816 tables)."""
    prove_all([ranks], range(1, 33), (1, 2, 3, 4))


def kinds(schedule, rank):
    return "".join(a.kind for a in schedule.actions[rank] if a.kind in schedules.UNITS)


def test_known_orders():
    assert kinds(schedules.build("gpipe", 2, 3), 0) == "FFFBBB"
    table = schedules.build("1f1b", 3, 4)
    assert [kinds(table, rank) for rank in range(3)] == ["FFFBFBBB", "FFBFBFBB", "FBFBFBFB"]
    first = schedules.build("zb_h1", 2, 4)
    assert kinds(first, 0) == "FFBWFBWFBWBW" and kinds(first, 1).startswith("FBFBWF")
    chunks = [(a.kind, a.chunk, a.micro_batch) for a in schedules.build("interleaved", 2, 2, 2).actions[1]
              if a.kind in schedules.UNITS]
    assert chunks[:4] == [("F", 0, 0), ("F", 0, 1), ("F", 1, 0), ("B", 1, 0)]


def test_bubbles_are_those_of_the_papers():
    """(p - 1) / (m + p - 1), a v-th of it, and a third of it in time."""
    p, m = 4, 8
    assert schedules.build("1f1b", p, m).bubble() == pytest.approx((p - 1) / (m + p - 1))
    assert schedules.build("interleaved", p, m, 2).bubble() == pytest.approx((p - 1) / (2 * m + p - 1))
    assert schedules.build("zb_h1", p, m).bubble() == pytest.approx((p - 1) / (3 * m + p - 1))


def test_a_stage_alone_needs_no_transfer():
    for chunks in (1, 3):
        table = schedules.build("interleaved", 1, 4, chunks)
        assert table.bubble() == 0 and all(a.kind in schedules.UNITS for a in table.actions[0])


def test_other_durations():
    """The planner times measured costs by the same function."""
    orders = [schedules.one_f_one_b_order(rank, 2, 2) for rank in range(2)]
    table = schedules.timed("1f1b", orders, 1, 2, {"F": 10, "B": 30})
    verify(table)
    assert table.makespan == 3 * 40


def test_orders_that_wait_for_each_other_are_found():
    with pytest.raises(AssertionError, match="wait for each other"):
        schedules.timed("1f1b", [[("B", 0, 0), ("F", 0, 0)], [("F", 0, 0), ("B", 0, 0)]], 1, 1, {"F": 1, "B": 2})


@pytest.mark.parametrize("arguments, message", [
    (("2f2b", 2, 2), "expected one of gpipe"), (("1f1b", 2, 0), "at least one"), (("1f1b", 2, 2, 2), "interleaved")])
def test_what_cannot_be_built(arguments, message):
    with pytest.raises(UserError, match=message):
        schedules.build(*arguments)
