"""A schedule's table played with the costs of a real run: stages of unequal cost, transfers that take time.

A unit starts when its rank is free and its input has arrived; a transfer starts when its value exists and the link
from that rank to the next is free. Sends take no time of the rank that sends (they are asynchronous on Ascend).
With equal stages and transfers of no time this is `schedules.timed`, which `tests/plan/test_simulation.py` holds it to.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from mindglm.plan import schedules
from mindglm.plan.schedules import BACKWARD, FORWARD, UNITS, WEIGHT, Schedule


@dataclass(frozen=True)
class Costs:
    """Seconds of each stage of the model, for one micro-batch."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    """Whole backward; a schedule that splits it takes half for B and half for W."""
    transfer: tuple[float, ...] = ()
    """Of what stage i and stage i + 1 exchange, each way; (): no time."""

    def of(self, kind: str, stage: int, splits: bool) -> float:
        """Of one unit of the schedule."""
        if kind == FORWARD:
            return self.forward[stage]
        return self.backward[stage] / 2 if splits else self.backward[stage]

    def crossing(self, stage: int) -> float:
        """From stage to stage + 1, or back."""
        return self.transfer[stage] if self.transfer else 0.0


@dataclass(frozen=True)
class Span:
    """One unit in the picture of a step."""

    rank: int
    kind: str
    """F, B or W."""
    chunk: int
    micro_batch: int
    start: float
    end: float


@dataclass(frozen=True)
class Played:
    """A step, but for what follows the last backward."""

    seconds: float
    """Until the last unit ends."""
    ends: tuple[float, ...]
    """When each rank's last unit ends."""
    busy: tuple[float, ...]
    """Seconds in which each rank computes."""
    spans: tuple[Span, ...] = ()

    @property
    def bubble(self) -> float:
        """Share of the ranks' time in which they wait."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


@functools.lru_cache(maxsize=256)
def orders(kind: str, ranks: int, micro_batches: int, chunks: int) -> tuple[tuple[schedules.Unit, ...], ...]:
    """Each rank's units in the order of the schedule's table."""
    if kind == "gpipe":
        return (tuple(schedules.gpipe_order(micro_batches)),) * ranks
    if kind == "1f1b":
        return tuple(tuple(schedules.one_f_one_b_order(rank, ranks, micro_batches)) for rank in range(ranks))
    if kind == "interleaved":
        return tuple(tuple(schedules.interleaved_order(rank, ranks, micro_batches, chunks)) for rank in range(ranks))
    assert kind == "zb_h1", kind
    return tuple(map(tuple, schedules.zb_h1_orders(ranks, micro_batches)))


def of_table(schedule: Schedule) -> tuple[tuple[schedules.Unit, ...], ...]:
    """The units of a table, by rank in order."""
    return tuple(tuple((a.kind, a.chunk, a.micro_batch) for a in actions if a.kind in UNITS)
                 for actions in schedule.actions)


def play(kind: str, ranks: int, micro_batches: int, chunks: int, costs: Costs, draw: bool = False) -> Played:
    """Play a schedule by name. draw: also tell the spans of all units."""
    return play_orders(orders(kind, ranks, micro_batches, chunks), chunks, costs, draw)


def play_orders(lists: Sequence[Sequence[schedules.Unit]], chunks: int, costs: Costs, draw: bool = False) -> Played:
    """Play each rank's list of units. AssertionError when the lists wait for each other."""
    ranks = len(lists)
    stages, splits = ranks * chunks, any(unit[0] == WEIGHT for unit in lists[0])
    seconds = {kind: [costs.of(kind, stage, splits) for stage in range(stages)] for kind in UNITS}
    arrived: dict[tuple[str, int, int], float] = {}  # (kind, stage, micro-batch) that may start by its input
    free, busy, position = [0.0] * ranks, [0.0] * ranks, [0] * ranks
    links: dict[tuple[int, int], float] = {}
    waiting: dict[tuple[str, int, int], int] = {}
    spans: list[Span] = []
    ready = list(range(ranks))
    while ready:
        rank = ready.pop()
        while position[rank] < len(lists[rank]):
            what, chunk, i = lists[rank][position[rank]]
            stage = chunk * ranks + rank
            first = what == FORWARD and stage == 0 or what == WEIGHT or what == BACKWARD and stage == stages - 1
            at = 0.0 if first else arrived.pop((what, stage, i), None)
            if at is None:
                waiting[what, stage, i] = rank
                break
            start = max(free[rank], at)
            end = start + seconds[what][stage]
            free[rank], busy[rank] = end, busy[rank] + seconds[what][stage]
            position[rank] = position[rank] + 1
            if draw:
                spans.append(Span(rank, what, chunk, i, start, end))
            target = stage + {FORWARD: 1, BACKWARD: -1}.get(what, stages)
            if 0 <= target < stages:
                arrived[what, target, i] = _arrival(links, rank, target % ranks, end, costs, min(stage, target))
                woken = waiting.pop((what, target, i), None)
                if woken is not None:
                    ready.append(woken)
    assert all(position[rank] == len(lists[rank]) for rank in range(ranks)), "the lists wait for each other"
    return Played(max(free), tuple(free), tuple(busy), tuple(spans))


def _arrival(links: dict, source: int, target: int, end: float, costs: Costs, boundary: int) -> float:
    """When a value that exists at `end` is at its target; a link carries one message at a time."""
    if source == target:
        return end
    seconds = costs.crossing(boundary)
    if not seconds:
        return end
    links[source, target] = max(end, links.get((source, target), 0.0)) + seconds
    return links[source, target]


def seconds(kind: str, ranks: int, micro_batches: int, chunks: int, costs: Costs) -> float:
    """The length of a step as `play` finds it to 3 %, quickly: once the pipeline is full, a schedule repeats itself."""
    period = ranks
    short = 3 * period + micro_batches % period
    if micro_batches <= short + period:
        return play(kind, ranks, micro_batches, chunks, costs).seconds
    first = play(kind, ranks, short, chunks, costs).seconds
    second = play(kind, ranks, short + period, chunks, costs).seconds
    return second + (second - first) * ((micro_batches - short - period) // period)


def least(micro_batches: int, ranks: int, chunks: int, costs: Costs) -> float:
    """No schedule is shorter: a rank works, waits until its first input is there, and for what follows its last."""
    both = [a + b for a, b in zip(costs.forward, costs.backward)]
    waits = [sum(both[:rank]) for rank in range(ranks)]
    return max(waits[rank] + micro_batches * sum(both[rank::ranks]) for rank in range(ranks))


def bubble(kind: str, ranks: int, micro_batches: int, chunks: int = 1) -> float:
    """Share of the time that ranks wait, for equal stages and quick transfers, in closed form.

    gpipe and 1f1b: (p - 1) / (m + p - 1); interleaved: (p - 1) / (v m + p - 1) for m a multiple of p; zb_h1:
    (p - 1) / (3 m + p - 1) for m of at least p (the papers are named in `schedules`). Other m: by playing the table.
    """
    p, m = ranks, micro_batches
    if kind in ("gpipe", "1f1b"):
        return (p - 1) / (m + p - 1)
    if kind == "interleaved" and m % p == 0:
        return (p - 1) / (chunks * m + p - 1)
    if kind == "zb_h1" and m >= p:
        return (p - 1) / (3 * m + p - 1)
    units = p * chunks
    return play(kind, p, m, chunks, Costs((1.0,) * units, (2.0,) * units)).bubble
