"""Pipeline schedules as data: for every rank, the ordered list of what it computes, sends and receives.

A model is cut into ranks * chunks stages; stage s lies on rank s % ranks as that rank's chunk s // ranks. A unit of
work is (kind, chunk, micro-batch): F forward, B backward (with W: only the gradient of the stage's input), W the
gradient of its weights. Four kinds of schedule:

    gpipe        all forwards, then all backwards (Huang et al. 2019)
    1f1b         one forward, one backward in turn once the pipeline is full (PipeDream-flush, Narayanan et al. 2021)
    interleaved  the same with several chunks a rank, which divides the bubble by their number (ibid.)
    zb_h1        backward split in B and W; W fills the bubble at the memory of 1f1b (Qi et al. 2023)

The order of the units on each rank is written down by the functions below; `timed` then lays them on a common time
axis and inserts the transfers. Transfers stand in one global order that all ranks follow, at the instant at which the
sender has the value: that order cannot deadlock, even when every send waits for its receiver (`verifier`).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from mindglm.errors import UserError

KINDS = ("gpipe", "1f1b", "interleaved", "zb_h1")

FORWARD, BACKWARD, WEIGHT = "F", "B", "W"
SEND_FORWARD, RECV_FORWARD, SEND_BACKWARD, RECV_BACKWARD = "send_F", "recv_F", "send_B", "recv_B"
UNITS = (FORWARD, BACKWARD, WEIGHT)

Unit = tuple[str, int, int]
"""(kind, chunk, micro-batch)."""


@dataclass(frozen=True)
class Action:
    """One line of a rank's table."""

    time: int
    """When a unit starts, or when a transfer's value exists; in units of the durations."""
    kind: str
    """F, B, W, or send_F, recv_F (activations), send_B, recv_B (gradients)."""
    chunk: int
    """The rank's chunk that computes, or that the transferred value leaves or enters."""
    micro_batch: int
    peer: int = -1
    """The other rank of a transfer."""


@dataclass(frozen=True)
class Schedule:
    """A whole table."""

    kind: str
    """One of KINDS, or "forward" (validation)."""
    ranks: int
    micro_batches: int
    chunks: int
    actions: tuple[tuple[Action, ...], ...]
    """Per rank, in the order in which it acts."""
    makespan: int
    """When the last unit ends."""
    durations: dict[str, int] = field(default_factory=dict)
    """Duration of each kind of unit on this time axis."""

    @property
    def stages(self) -> int:
        return self.ranks * self.chunks

    @property
    def splits_backward(self) -> bool:
        """Whether B and W are units of their own."""
        return self.kind == "zb_h1"

    def busy(self, rank: int) -> int:
        """Time in which a rank computes."""
        return sum(self.durations[action.kind] for action in self.actions[rank] if action.kind in UNITS)

    def bubble(self) -> float:
        """Share of the ranks' time in which they wait."""
        return 1 - sum(self.busy(rank) for rank in range(self.ranks)) / (self.ranks * self.makespan)


def build(kind: str, ranks: int, micro_batches: int, chunks: int = 1) -> Schedule:
    """The table of a schedule. A whole backward lasts twice a forward; B and W last as long as a forward each.

    Raises UserError for an unknown kind, and for chunks that the kind cannot use.
    """
    if kind not in KINDS:
        raise UserError(f"pipeline schedule {kind!r} is unknown; expected one of {', '.join(KINDS)}")
    if min(ranks, micro_batches, chunks) < 1:
        raise UserError(f"a pipeline needs at least one stage, micro-batch and chunk, given {ranks}, {micro_batches} "
                        f"and {chunks}")
    if chunks > 1 and kind != "interleaved":
        raise UserError(f"schedule {kind} keeps one chunk a rank, given {chunks}; set one chunk or take interleaved")
    if kind == "gpipe":
        orders = [gpipe_order(micro_batches) for _ in range(ranks)]
    elif kind == "1f1b":
        orders = [one_f_one_b_order(rank, ranks, micro_batches) for rank in range(ranks)]
    elif kind == "interleaved":
        orders = [interleaved_order(rank, ranks, micro_batches, chunks) for rank in range(ranks)]
    else:
        orders = zb_h1_orders(ranks, micro_batches)
    backward = 1 if kind == "zb_h1" else 2
    return timed(kind, orders, chunks, micro_batches, {FORWARD: 1, BACKWARD: backward, WEIGHT: 1})


def forward_only(ranks: int, micro_batches: int, chunks: int = 1) -> Schedule:
    """The table of a validation pass: forwards only."""
    orders = [[unit for unit in interleaved_order(rank, ranks, micro_batches, chunks) if unit[0] == FORWARD]
              for rank in range(ranks)]
    return timed("forward", orders, chunks, micro_batches, {FORWARD: 1})


def gpipe_order(micro_batches: int) -> list[Unit]:
    """Forwards, then backwards, both from the first micro-batch on."""
    return [(kind, 0, i) for kind in (FORWARD, BACKWARD) for i in range(micro_batches)]


def one_f_one_b_order(rank: int, ranks: int, micro_batches: int) -> list[Unit]:
    """ranks - 1 - rank forwards ahead, then forward and backward in turn."""
    forwards = [(FORWARD, 0, i) for i in range(micro_batches)]
    backwards = [(BACKWARD, 0, i) for i in range(micro_batches)]
    return _in_turn(forwards, backwards, ranks - 1 - rank)


def interleaved_order(rank: int, ranks: int, micro_batches: int, chunks: int) -> list[Unit]:
    """Groups of `ranks` micro-batches pass through all chunks before the next group starts.

    A last group that is not full is laid out as if it were, and its missing micro-batches are struck out: what is left
    keeps its order, so it is as safe as the full table.
    """
    groups = -(-micro_batches // ranks)
    walk = [(chunk, group * ranks + i) for group in range(groups) for chunk in range(chunks) for i in range(ranks)]
    forwards = [(FORWARD, chunk, i) for chunk, i in walk]
    backwards = [(BACKWARD, chunks - 1 - chunk, i) for chunk, i in walk]
    ahead = ranks - 1 - rank if chunks == 1 else 2 * (ranks - 1 - rank) + (chunks - 1) * ranks
    return [unit for unit in _in_turn(forwards, backwards, ahead) if unit[2] < micro_batches]


def _in_turn(forwards: list[Unit], backwards: list[Unit], ahead: int) -> list[Unit]:
    ahead = min(ahead, len(forwards))
    order = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards):
        order = order + [forward, backward]
    return order + backwards[len(forwards) - ahead:]


def zb_h1_orders(ranks: int, micro_batches: int) -> list[list[Unit]]:
    """1f1b whose weight gradients wait for the bubble; no rank holds more than `ranks` micro-batches at a time.

    Time runs in steps of one unit. Each rank takes a forward that has arrived, while it is at most as many
    micro-batches ahead as in 1f1b and has memory; else a backward that is ready; else a weight gradient.
    """
    done: dict[tuple[str, int, int], int] = {}  # (kind, rank, micro-batch) -> when it ended
    count = [dict.fromkeys(UNITS, 0) for _ in range(ranks)]
    orders: list[list[Unit]] = [[] for _ in range(ranks)]
    time = 0
    while any(len(order) < 3 * micro_batches for order in orders):
        finished = []
        for rank in range(ranks):
            kind = _zb_h1_choice(rank, ranks, micro_batches, count[rank], done)
            if kind is not None:
                i = count[rank][kind]
                orders[rank].append((kind, 0, i))
                count[rank][kind] = i + 1
                finished.append((kind, rank, i))
        time = time + 1
        done.update((unit, time) for unit in finished)
    return orders


def _zb_h1_choice(rank: int, ranks: int, micro_batches: int, count: dict[str, int], done: dict) -> str | None:
    forward, backward, weight = (count[kind] for kind in UNITS)
    below = (BACKWARD, rank + 1, backward) in done if rank < ranks - 1 else (FORWARD, rank, backward) in done
    arrived = forward < micro_batches and (rank == 0 or (FORWARD, rank - 1, forward) in done)
    if arrived and forward - backward < ranks - rank and forward - weight < ranks:
        return FORWARD
    if backward < forward and below:
        return BACKWARD
    return WEIGHT if weight < backward else None


def timed(kind: str, orders: Sequence[Sequence[Unit]], chunks: int, micro_batches: int,
          durations: dict[str, int]) -> Schedule:
    """Start every unit as soon as its rank is free and its input exists; put every transfer where its value exists.

    `durations` may be any integers, e.g. measured microseconds: the planner times its own costs by this function.
    AssertionError when the orders contradict each other.
    """
    ranks = len(orders)
    table: list[list[tuple]] = [[] for _ in range(ranks)]  # (time, transfer before unit, tie, Action)
    ended: dict[tuple[str, int, int], int] = {}  # (kind, stage, micro-batch)
    position, free, makespan = [0] * ranks, [0] * ranks, 0
    ready = [(0, rank) for rank in range(ranks)]
    waiting: dict[tuple, int] = {}  # what a stopped rank waits for
    while ready:
        _, rank = heapq.heappop(ready)
        while position[rank] < len(orders[rank]):
            what, chunk, i = orders[rank][position[rank]]
            stage = chunk * ranks + rank
            needs = [need for need in inputs_of(what, stage, i, ranks * chunks) if need not in ended]
            if needs:
                waiting[needs[0]] = rank
                break
            start = max([free[rank], *(ended[need] for need in inputs_of(what, stage, i, ranks * chunks))])
            end = start + durations[what]
            ended[what, stage, i], free[rank], makespan = end, end, max(makespan, end)
            position[rank] = position[rank] + 1
            table[rank].append((start, 1, (), Action(start, what, chunk, i)))
            _transfer(table, kind, what, stage, i, ranks, chunks, end)
            woken = waiting.pop((what, stage, i), None)
            if woken is not None:
                heapq.heappush(ready, (end, woken))
    assert all(position[rank] == len(orders[rank]) for rank in range(ranks)), f"{kind}: the orders wait for each other"
    actions = tuple(tuple(line[3] for line in sorted(lines, key=lambda line: line[:3])) for lines in table)
    return Schedule(kind, ranks, micro_batches, chunks, actions, makespan, dict(durations))


def inputs_of(kind: str, stage: int, micro_batch: int, stages: int) -> list[tuple[str, int, int]]:
    """The (kind, stage, micro-batch) whose results a unit needs."""
    if kind == FORWARD:
        return [(FORWARD, stage - 1, micro_batch)] if stage else []
    if kind == WEIGHT:
        return [(BACKWARD, stage, micro_batch)]
    above = [(BACKWARD, stage + 1, micro_batch)] if stage < stages - 1 else []
    return [(FORWARD, stage, micro_batch), *above]


def _transfer(table: list, schedule: str, what: str, stage: int, i: int, ranks: int, chunks: int, end: int) -> None:
    """Add to both sides' tables the transfer that follows a unit, if the next stage lies on another rank."""
    step = {FORWARD: 1, BACKWARD: -1}.get(what, 0)
    target = stage + step
    if not step or not 0 <= target < ranks * chunks or target % ranks == stage % ranks:
        return
    source_rank, target_rank = stage % ranks, target % ranks
    # One tie-break for both sides: equal instants are ordered by what is sent, backwards first.
    tie = (what == FORWARD, stage, i)
    send, recv = (SEND_FORWARD, RECV_FORWARD) if what == FORWARD else (SEND_BACKWARD, RECV_BACKWARD)
    table[source_rank].append((end, 0, tie, Action(end, send, stage // ranks, i, target_rank)))
    table[target_rank].append((end, 0, tie, Action(end, recv, target // ranks, i, source_rank)))
