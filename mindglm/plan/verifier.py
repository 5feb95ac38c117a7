"""Proof of a pipeline schedule, from its table alone: it does not know how the table was made.

`verify` plays the table with the hardest kind of transfer: a rank that sends stands still until its peer receives, and
the other way round. Every transfer names its peer and every rank's list is fixed, so the outcome does not depend on
who is fast (a Kahn network): one play that ends proves that no play can deadlock.
"""

from dataclasses import dataclass

from mindglm.plan import schedules
from mindglm.plan.schedules import BACKWARD, FORWARD, UNITS, WEIGHT, Action, Schedule


class ScheduleError(AssertionError):
    """A table that must not be run; the message names the rank and the line."""


@dataclass(frozen=True)
class Proof:
    """What was found while a schedule was proven."""

    in_flight: tuple[int, ...]
    """Per rank: the most forwards whose activations are kept at one time, over all its chunks."""
    received: tuple[int, ...]
    """Per rank: the most received values that wait for their unit at one time."""


def verify(schedule: Schedule) -> Proof:
    """Raises ScheduleError unless every unit runs exactly once, after its inputs, without deadlock and in memory.

    Memory: the activations of a forward are kept until its B, or until its W where W is a unit of its own;
    `memory_bound` says how many.
    """
    _each_unit_once(schedule)
    _times_are_possible(schedule)
    _play(schedule)
    proof = Proof(*zip(*(_follow_values(schedule, rank) for rank in range(schedule.ranks))))
    for rank, peak in enumerate(proof.in_flight):
        bound = memory_bound(schedule, rank)
        if peak > bound:
            raise ScheduleError(f"{schedule.kind}: rank {rank} keeps {peak} forwards, its bound is {bound}")
    return proof


def memory_bound(schedule: Schedule, rank: int) -> int:
    """Forwards that a rank may keep at a time; what each schedule is known and chosen for."""
    ranks, m, chunks = schedule.ranks, schedule.micro_batches, schedule.chunks
    if schedule.kind == "forward":
        return 0
    if schedule.kind == "gpipe":
        return m
    if schedule.kind == "1f1b" or schedule.kind == "interleaved" and chunks == 1:
        return min(m, ranks - rank)
    if schedule.kind == "zb_h1":
        return min(m, ranks)
    return min(m * chunks, 2 * (ranks - 1 - rank) + (chunks - 1) * ranks + 1)


def _each_unit_once(schedule: Schedule) -> None:
    kinds = (FORWARD,) if schedule.kind == "forward" else UNITS if schedule.splits_backward else (FORWARD, BACKWARD)
    expected = sorted((kind, chunk, i) for kind in kinds for chunk in range(schedule.chunks)
                      for i in range(schedule.micro_batches))
    for rank, actions in enumerate(schedule.actions):
        units = sorted((a.kind, a.chunk, a.micro_batch) for a in actions if a.kind in UNITS)
        if units != expected:
            wrong = set(units) ^ set(expected) or [unit for unit in set(units) if units.count(unit) > 1]
            raise ScheduleError(f"{schedule.kind}: rank {rank} has these units missing, too much or twice: "
                                f"{sorted(wrong)[:3]}")


def _times_are_possible(schedule: Schedule) -> None:
    """No rank does two units at once, and none starts before its inputs have ended."""
    ended = {}
    for rank, actions in enumerate(schedule.actions):
        free = 0
        for action in actions:
            if action.kind in UNITS:
                if action.time < free:
                    raise ScheduleError(f"rank {rank} is still busy at {action}")
                free = action.time + schedule.durations[action.kind]
                ended[action.kind, action.chunk * schedule.ranks + rank, action.micro_batch] = free
    if max(ended.values()) != schedule.makespan:
        raise ScheduleError(f"the last unit ends at {max(ended.values())}, not at {schedule.makespan}")
    for (kind, stage, i), end in ended.items():
        for need in schedules.inputs_of(kind, stage, i, schedule.stages):
            if ended[need] > end - schedule.durations[kind]:
                raise ScheduleError(f"{kind} of stage {stage}, micro-batch {i} starts before {need} has ended")


def _play(schedule: Schedule) -> None:
    """Run all ranks' lists with transfers that wait for each other, until all are done or all stand still."""
    lists = [list(actions) for actions in schedule.actions]
    position = [0] * schedule.ranks
    todo = list(range(schedule.ranks))
    while todo:
        rank = todo.pop()
        while position[rank] < len(lists[rank]):
            action = lists[rank][position[rank]]
            if action.kind not in UNITS:
                peer = action.peer
                if not 0 <= peer < schedule.ranks or peer == rank:
                    raise ScheduleError(f"rank {rank}: {action} has no such peer")
                other = lists[peer][position[peer]] if position[peer] < len(lists[peer]) else None
                if other is None or not _match(schedule, rank, action, peer, other):
                    break
                position[peer] = position[peer] + 1
                todo.append(peer)
            position[rank] = position[rank] + 1
    stuck = {rank: lists[rank][position[rank]] for rank in range(schedule.ranks) if position[rank] < len(lists[rank])}
    if stuck:
        raise ScheduleError(f"{schedule.kind}: deadlock; the ranks stand at {stuck}")


def _match(schedule: Schedule, rank: int, action: Action, peer: int, other: Action) -> bool:
    """Whether the two lines are the two ends of one transfer."""
    if other.kind in UNITS or other.peer != rank or other.micro_batch != action.micro_batch:
        return False
    if action.kind.startswith("recv"):
        rank, action, peer, other = peer, other, rank, action
    if not action.kind.startswith("send") or other.kind != action.kind.replace("send", "recv"):
        return False
    step = 1 if action.kind == schedules.SEND_FORWARD else -1
    return other.chunk * schedule.ranks + peer == action.chunk * schedule.ranks + rank + step


def _follow_values(schedule: Schedule, rank: int) -> tuple[int, int]:
    """Check that every value is there when it is used, and is sent exactly once; (peak in flight, peak received)."""
    ranks, last = schedule.ranks, schedule.stages - 1
    done: set[tuple[str, int, int]] = set()
    waiting: set[tuple[str, int, int]] = set()  # received, not yet used
    unsent: set[tuple[str, int, int]] = set()
    kept = kept_peak = waiting_peak = 0
    for action in schedule.actions[rank]:
        kind, chunk, i = action.kind, action.chunk, action.micro_batch
        stage = chunk * ranks + rank
        if kind.startswith("recv"):
            waiting.add((kind[-1], stage, i))
            waiting_peak = max(waiting_peak, len(waiting))
        elif kind.startswith("send"):
            if (kind[-1], stage, i) not in unsent:
                raise ScheduleError(f"rank {rank}: {action} sends what is not there or was sent already")
            unsent.remove((kind[-1], stage, i))
        else:
            _take_inputs(schedule, rank, action, done, waiting)
            done.add((kind, stage, i))
            neighbour = stage + {FORWARD: 1, BACKWARD: -1, WEIGHT: 0}[kind]
            if 0 <= neighbour <= last and neighbour % ranks != rank:
                unsent.add((kind, stage, i))
            released = WEIGHT if schedule.splits_backward else BACKWARD
            if schedule.kind != "forward":
                kept = kept + (kind == FORWARD) - (kind == released)
            kept_peak = max(kept_peak, kept)
    if waiting or unsent:
        raise ScheduleError(f"rank {rank}: received and never used {sorted(waiting)}, never sent {sorted(unsent)}")
    return kept_peak, waiting_peak


def _take_inputs(schedule: Schedule, rank: int, action: Action, done: set, waiting: set) -> None:
    stage = action.chunk * schedule.ranks + rank
    for need in schedules.inputs_of(action.kind, stage, action.micro_batch, schedule.stages):
        kind, owner, i = need
        if owner % schedule.ranks == rank:
            if need not in done:
                raise ScheduleError(f"rank {rank}: {action} comes before {need}")
        elif (kind, stage, i) in waiting:
            waiting.remove((kind, stage, i))
        else:
            raise ScheduleError(f"rank {rank}: {action} comes before the value of {need} was received")
