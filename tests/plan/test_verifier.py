"""The verifier finds every kind of fault that is put into a good table."""

from dataclasses import replace

import pytest

from mindglm.plan import schedules
from mindglm.plan.schedules import Action
from mindglm.plan.verifier import ScheduleError, verify


def changed(table, rank, change):
    """The table with one rank's list passed through `change`."""
    actions = list(table.actions)
    lines = list(actions[rank])
    actions[rank] = tuple(change(lines) or lines)
    return replace(table, actions=tuple(actions))


def swap(i, j):
    def change(lines):
        lines[i], lines[j] = lines[j], lines[i]
    return change


def index(table, rank, kind, micro_batch):
    return next(i for i, a in enumerate(table.actions[rank]) if (a.kind, a.micro_batch) == (kind, micro_batch))


@pytest.fixture
def table():
    return schedules.build("1f1b", 3, 4)


def test_a_unit_missing_or_twice(table):
    last = index(table, 2, "B", 3)
    with pytest.raises(ScheduleError, match="rank 2 has these units missing"):
        verify(changed(table, 2, lambda lines: lines[:last] + lines[last + 1:]))
    with pytest.raises(ScheduleError, match="missing, too much or twice"):
        verify(changed(table, 0, lambda lines: lines + [replace(lines[0])]))


def test_deadlock(table):
    """Both sides of a boundary send before they receive: harmless with buffers, fatal without."""
    for rank, kinds in ((1, ("send_F", "recv_B")), (1, ("send_B", "recv_F"))):
        first, second = (index(table, rank, kind, i) for kind, i in zip(kinds, (2, 1) if "F" in kinds[0] else (1, 3)))
        with pytest.raises(ScheduleError, match="deadlock|comes before"):
            verify(changed(table, rank, swap(first, second)))


def test_rendezvous_is_what_is_proven():
    """Two ranks that each send first; with buffered sends this would pass."""
    table = schedules.build("1f1b", 2, 2)
    at = [(rank, index(table, rank, kind, i)) for rank, kind, i in ((0, "send_F", 1), (0, "recv_B", 0))]
    assert at[0][1] != at[1][1]
    late = index(table, 1, "recv_F", 1)
    early = index(table, 1, "send_B", 0)
    first = min(late, early), max(late, early)
    with pytest.raises(ScheduleError, match="deadlock|before"):
        verify(changed(table, 1, swap(*first)))


def test_a_value_used_before_it_came(table):
    with pytest.raises(ScheduleError):
        verify(changed(table, 1, swap(index(table, 1, "recv_F", 0), index(table, 1, "F", 0))))


def test_a_transfer_to_the_wrong_rank_or_of_the_wrong_value(table):
    at = index(table, 0, "send_F", 0)
    for wrong, message in ((2, "deadlock"), (0, "no such peer"), (7, "no such peer")):
        def change(lines, wrong=wrong):
            lines[at] = replace(lines[at], peer=wrong)
        with pytest.raises(ScheduleError, match=message):
            verify(changed(table, 0, change))
    with pytest.raises(ScheduleError, match="deadlock"):
        verify(changed(table, 0, lambda lines: [replace(a, micro_batch=3) if a is lines[at] else a for a in lines]))


def test_a_transfer_that_nobody_asked_for(table):
    """A pair of matching lines too many is not a deadlock, but a value that is never used."""
    more = changed(table, 0, lambda lines: lines + [Action(40, "send_F", 0, 3, 1)])
    more = changed(more, 1, lambda lines: lines + [Action(40, "recv_F", 0, 3, 0)])
    with pytest.raises(ScheduleError, match="sent already|never used"):
        verify(more)


def test_times(table):
    with pytest.raises(ScheduleError, match="still busy|has ended"):
        verify(changed(table, 1, lambda lines: [replace(a, time=0) if a.kind == "B" else a for a in lines]))
    with pytest.raises(ScheduleError, match="not at"):
        verify(replace(table, makespan=table.makespan + 1))


def test_memory(table):
    """gpipe's order under the name of 1f1b keeps too many activations."""
    greedy = replace(schedules.build("gpipe", 3, 4), kind="1f1b")
    with pytest.raises(ScheduleError, match="rank 0 keeps 4 forwards, its bound is 3"):
        verify(greedy)
    assert verify(table).in_flight == (3, 2, 1)
    assert max(verify(schedules.build("zb_h1", 4, 9)).in_flight) <= 4
