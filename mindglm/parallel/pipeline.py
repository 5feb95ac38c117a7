"""Runs any pipeline schedule (`mindglm.plan.schedules`) over this rank's stages. It knows no model.

A stage is a Cell: `received(inputs)` says what shapes come from the stage before, and `stage(carried, inputs)` gives
what the next stage receives; the last one gives the arguments of the loss. `inputs` are arrays that every rank of the
pipeline has, so no shape travels and micro-batches may differ in length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from mindglm.errors import UserError
from mindglm.ops import tape
from mindglm.parallel import transport
from mindglm.plan.schedules import (
    BACKWARD, FORWARD, RECV_BACKWARD, RECV_FORWARD, SEND_BACKWARD, SEND_FORWARD, Action, Schedule, forward_only,
)


@dataclass(frozen=True)
class Result:
    """Of one global step, on one rank."""

    pairs: tuple[tuple[float, float], ...]
    """(loss_sum, weight_sum) of every micro-batch, in order; none on ranks without the last stage."""
    gradients: list[Tensor] | None
    """Of the sum of the losses, in the order of Executor.parameters; None when a sink took them."""

    @property
    def loss_sum(self) -> float:
        """Over the micro-batches; 0 on ranks without the last stage."""
        return sum(loss for loss, _ in self.pairs)

    @property
    def weight_sum(self) -> float:
        """As loss_sum."""
        return sum(weight for _, weight in self.pairs)


class Executor:
    """The stages of one rank, and how they run a table.

    Args:
        stages: this rank's stages, chunk 0 first.
        schedule: the table; only this rank's part of it is run.
        ranks: the pipeline's ranks in the world, first stage first; one rank needs no process group.
        inputs: micro-batch -> `inputs` of the stages.
        loss: (output of the last stage, micro-batch) -> (loss_sum, weight_sum), scalar Tensors.
    """

    def __init__(self, stages: Sequence, schedule: Schedule, ranks: Sequence[int], inputs: Callable, loss: Callable):
        if schedule.splits_backward:
            raise UserError(
                "pipeline schedule zb_h1 needs input gradients and weight gradients apart, and MindSpore's tape gives "
                "them apart only by computing the input gradients twice (measured: backward 1.2 times as long), "
                "which costs more than the bubble it fills; take 1f1b or interleaved")
        assert len(stages) == schedule.chunks and len(ranks) == schedule.ranks, (len(stages), schedule, ranks)
        self._place = list(ranks).index(transport.rank())
        assert stages[-1].last == (self._place == len(ranks) - 1), "the stages do not belong to this rank"
        self._stages, self._ranks, self._inputs, self._loss = list(stages), tuple(ranks), inputs, loss
        self._schedule = schedule
        self._peers = None
        if len(ranks) > 1:
            from mindglm.parallel.transport_peers import Peers

            self._peers = Peers()
        owned = [parameter for stage in stages for parameter in stage.trainable_params()]
        self.parameters = sorted(owned, key=lambda parameter: parameter.name)
        """The trained parameters of this rank, by name."""

    def __call__(self, micro_batches: Sequence[tuple], sink: Callable | None = None) -> Result:
        """One global step.

        Args:
            micro_batches: tuples of arrays, the same on every rank of the pipeline; as many as the schedule has.
            sink: called as sink(micro_batch, parameters, gradients) after each backward of a stage: once for every
                micro-batch and stage, the micro-batches of a stage in rising order, gradients in the parameters'
                dtype, zeros where there is none. None: they are summed in that order.
        """
        if len(micro_batches) != self._schedule.micro_batches:
            raise UserError(f"{len(micro_batches)} micro-batches were given to a schedule of "
                            f"{self._schedule.micro_batches}; set parallel_config.micro_batch_num accordingly")
        total = None if sink else _Sum()
        run = _Run(self, self._schedule, micro_batches, sink or total.add)
        run.all()
        gradients = None if sink else [total.of(parameter) for parameter in self.parameters]
        return Result(run.pairs(), gradients)

    def evaluate(self, micro_batches: Sequence[tuple]) -> tuple[float, float]:
        """(loss_sum, weight_sum) by forwards alone; zeros on ranks without the last stage. Any number of them."""
        if not micro_batches:
            return 0.0, 0.0
        table = forward_only(self._schedule.ranks, len(micro_batches), self._schedule.chunks)
        run = _Run(self, table, micro_batches, None)
        run.all()
        result = Result(run.pairs(), None)
        return result.loss_sum, result.weight_sum


class _Sum:
    """Gradients of each parameter, summed as they come."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}

    def add(self, micro_batch: int, parameters, gradients) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            before = self._sums.get(parameter.name)
            self._sums[parameter.name] = gradient if before is None else before + gradient

    def of(self, parameter) -> Tensor:
        return self._sums[parameter.name]


@dataclass
class _Flight:
    """A forward whose backward is still to come."""

    carried: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class _Run:
    """One pass through a table."""

    def __init__(self, executor: Executor, schedule: Schedule, micro_batches, sink):
        self._executor, self._schedule, self._batches, self._sink = executor, schedule, micro_batches, sink
        self._inputs = [executor._inputs(batch) for batch in micro_batches]
        self._flights: dict[tuple[int, int], _Flight] = {}
        self._ready: dict[tuple[str, int, int], tuple[Tensor, ...]] = {}  # values to be sent or used here
        self._sources: dict[tuple[str, int, int], int] = {}  # announced: from which rank of the world
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._parameters = [stage.trainable_params() for stage in executor._stages]

    def all(self) -> None:
        """Every line of this rank's part of the table."""
        perform = {FORWARD: self._forward, BACKWARD: self._backward, SEND_FORWARD: self._send,
                   SEND_BACKWARD: self._send, RECV_FORWARD: self._announce, RECV_BACKWARD: self._announce}
        for action in self._schedule.actions[self._executor._place]:
            perform[action.kind](action)
        if self._executor._peers:
            self._executor._peers.finish()
        assert not self._flights and not self._ready, "the table left values behind"

    def pairs(self) -> tuple[tuple[float, float], ...]:
        """What the last stage found, read only now: the host need not wait for each micro-batch."""
        return tuple((float(loss.asnumpy()), float(weight.asnumpy())) for loss, weight in self._pairs)

    def _forward(self, action: Action) -> None:
        chunk, i = action.chunk, action.micro_batch
        stage, inputs = self._executor._stages[chunk], self._inputs[i]
        training = self._sink is not None
        carried = () if stage.first else self._value("F", chunk, i)
        if training:
            carried = tuple(tape.leaf(x) for x in carried)
        with tape.recording(training):
            outputs = stage(carried, inputs)
            if stage.last:
                loss_sum, weight_sum = self._executor._loss(*outputs, self._batches[i])
                self._pairs.append((loss_sum, weight_sum))
                outputs = (loss_sum,)
            else:
                outputs = tuple(tape.same(y) if any(y is x for x in carried) else y for y in outputs)
        if training:
            self._flights[chunk, i] = _Flight(carried, outputs)
        if not stage.last:
            self._hand_on("F", chunk, i, outputs)

    def _backward(self, action: Action) -> None:
        chunk, i = action.chunk, action.micro_batch
        stage, flight = self._executor._stages[chunk], self._flights.pop((chunk, i))
        gradients = (Tensor(1.0, ms.float32),) if stage.last else self._value("B", chunk, i)
        parameters = self._parameters[chunk]
        wanted = [*parameters, *flight.carried]
        found = tape.backward(flight.outputs, gradients, wanted)
        found = [_zeros(x) if gradient is None else gradient for gradient, x in zip(found, wanted)]
        self._sink(i, parameters, found[:len(parameters)])
        if not stage.first:
            self._hand_on("B", chunk, i, tuple(found[len(parameters):]))

    def _hand_on(self, kind: str, chunk: int, i: int, values: tuple[Tensor, ...]) -> None:
        """Keep a result until its line "send"; a pipeline of one rank gives it to its own neighbour chunk."""
        if len(self._executor._ranks) == 1:
            chunk = chunk + (1 if kind == "F" else -1)
            self._ready[kind, chunk, i] = tuple(values)
        else:
            self._ready["send_" + kind, chunk, i] = tuple(values)

    def _send(self, action: Action) -> None:
        values = self._ready.pop((action.kind, action.chunk, action.micro_batch))
        target = action.chunk
        if action.kind == SEND_FORWARD and self._executor._place == len(self._executor._ranks) - 1:
            target = target + 1
        if action.kind == SEND_BACKWARD and self._executor._place == 0:
            target = target - 1
        tag = _tag(action.kind[-1], target, action.micro_batch)
        self._executor._peers.send(values, self._executor._ranks[action.peer], tag)

    def _announce(self, action: Action) -> None:
        chunk, i, kind = action.chunk, action.micro_batch, action.kind[-1]
        if kind == "F":
            shapes = self._executor._stages[chunk].received(self._inputs[i])
        else:
            shapes = tuple((y.shape, y.dtype) for y in self._flights[chunk, i].outputs)
        peer = self._executor._ranks[action.peer]
        self._sources[kind, chunk, i] = peer
        self._executor._peers.post(shapes, peer, _tag(kind, chunk, i))

    def _value(self, kind: str, chunk: int, i: int) -> tuple[Tensor, ...]:
        """What the neighbour stage gave for this unit."""
        if (kind, chunk, i) in self._ready:
            return self._ready.pop((kind, chunk, i))
        return self._executor._peers.take(self._sources.pop((kind, chunk, i)), _tag(kind, chunk, i))


def _tag(kind: str, chunk: int, i: int) -> str:
    """A message's name in errors: where it enters."""
    what = "activations" if kind == "F" else "gradients"
    return f"{what} for chunk {chunk}, micro-batch {i}"


def _zeros(x) -> Tensor:
    return mint.zeros(x.shape, dtype=x.dtype) if x.shape else Tensor(np.zeros((), np.float32), x.dtype)
