"""One rank's way through a pipeline table: which value is sent, awaited or used when. What a unit computes is not here.

`pipeline` computes by stages and the tape; the bubble benchmark only sleeps (tests/benchmarks/bubble.py). Both go
through this very code, so what is measured of the one holds for the other.
"""

from collections.abc import Sequence

from mindspore import Tensor

from mindglm.parallel import transport
from mindglm.plan.schedules import (
    BACKWARD, FORWARD, RECV_BACKWARD, RECV_FORWARD, SEND_BACKWARD, SEND_FORWARD, WEIGHT, Action, Schedule,
)


def peers_of(ranks: Sequence[int]):
    """The connection to the other ranks of a pipeline; None for a pipeline of one, which needs no process group."""
    if len(ranks) == 1:
        return None
    from mindglm.parallel.transport_peers import Peers

    return Peers()


class Passage:
    """Walks this rank's lines of a table. A subclass gives `forward`, `backward`, `weight` and `shapes`."""

    def __init__(self, schedule: Schedule, ranks: Sequence[int], peers):
        """ranks: the pipeline's ranks in the world, first stage first. peers: of `peers_of`."""
        self.place = list(ranks).index(transport.rank())
        self._schedule, self._ranks, self._peers = schedule, tuple(ranks), peers
        self._ready: dict[tuple[str, int, int], tuple[Tensor, ...]] = {}  # values to be sent or used here
        self._sources: dict[tuple[str, int, int], int] = {}  # announced: from which rank of the world

    def all(self) -> None:
        """Every line of this rank's part of the table."""
        perform = {FORWARD: self.forward, BACKWARD: self.backward, WEIGHT: self.weight, SEND_FORWARD: self._send,
                   SEND_BACKWARD: self._send, RECV_FORWARD: self._announce, RECV_BACKWARD: self._announce}
        for action in self._schedule.actions[self.place]:
            perform[action.kind](action)
        if self._peers:
            self._peers.finish()
        assert not self._ready, "the table left values behind"

    def forward(self, action: Action) -> None:
        """Unit F: takes `value("F", ...)` unless its stage is the model's first, and ends with `hand_on("F", ...)`."""
        raise NotImplementedError

    def backward(self, action: Action) -> None:
        """Unit B: takes `value("B", ...)` unless its stage is the last, and ends with `hand_on("B", ...)`."""
        raise NotImplementedError

    def weight(self, action: Action) -> None:
        """Unit W, in tables that have it."""
        raise NotImplementedError

    def shapes(self, kind: str, chunk: int, i: int) -> tuple:
        """((shape, dtype), ...) of the value that the neighbour gives for a unit. kind: F or B."""
        raise NotImplementedError

    def value(self, kind: str, chunk: int, i: int) -> tuple[Tensor, ...]:
        """What the neighbour stage gave for this unit; waits for it."""
        if (kind, chunk, i) in self._ready:
            return self._ready.pop((kind, chunk, i))
        return self._peers.take(self._sources.pop((kind, chunk, i)), _tag(kind, chunk, i))

    def hand_on(self, kind: str, chunk: int, i: int, values: tuple[Tensor, ...]) -> None:
        """Keep a result until its line "send"; a pipeline of one rank gives it to its own neighbour chunk."""
        if len(self._ranks) == 1:
            chunk = chunk + (1 if kind == "F" else -1)
            self._ready[kind, chunk, i] = tuple(values)
        else:
            self._ready["send_" + kind, chunk, i] = tuple(values)

    def _send(self, action: Action) -> None:
        values = self._ready.pop((action.kind, action.chunk, action.micro_batch))
        target = action.chunk
        if action.kind == SEND_FORWARD and self.place == len(self._ranks) - 1:
            target = target + 1
        if action.kind == SEND_BACKWARD and self.place == 0:
            target = target - 1
        tag = _tag(action.kind[-1], target, action.micro_batch)
        self._peers.send(values, self._ranks[action.peer], tag)

    def _announce(self, action: Action) -> None:
        chunk, i, kind = action.chunk, action.micro_batch, action.kind[-1]
        peer = self._ranks[action.peer]
        self._sources[kind, chunk, i] = peer
        self._peers.post(self.shapes(kind, chunk, i), peer, _tag(kind, chunk, i))


def _tag(kind: str, chunk: int, i: int) -> str:
    """A message's name in errors: where it enters."""
    what = "activations" if kind == "F" else "gradients"
    return f"{what} for chunk {chunk}, micro-batch {i}"
