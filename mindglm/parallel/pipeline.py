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
from mindglm.parallel.passage import Passage, peers_of
from mindglm.plan.schedules import Action, Schedule, forward_only


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
        assert stages[-1].last == (transport.rank() == ranks[-1]), "the stages do not belong to this rank"
        self._stages, self._ranks, self._inputs, self._loss = list(stages), tuple(ranks), inputs, loss
        self._schedule, self._peers = schedule, peers_of(ranks)
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
        run = self._forwards(micro_batches)
        result = Result(run.pairs(), None)
        return result.loss_sum, result.weight_sum

    def predict(self, micro_batch: tuple, read: Callable) -> np.ndarray:
        """read(output of the model), float32 or int32, of one micro-batch, on every rank of the pipeline."""
        run = self._forwards([micro_batch], judge=False)
        mine = read(*run.outputs) if run.outputs else None
        if len(self._ranks) == 1:
            return mine
        group = transport.group(self._ranks)
        shape, dtype = transport.gather_objects(None if mine is None else (mine.shape, mine.dtype.str), group)[-1]
        # What is read of the model may be large: it travels as a Tensor, not among the objects.
        given = Tensor(np.zeros(shape, dtype) if mine is None else mine)
        return transport.broadcast(given, self._ranks[-1], group, "a prediction").asnumpy().copy()

    def _forwards(self, micro_batches: Sequence[tuple], judge: bool = True) -> "_Run":
        """The run of a table without backwards; judge: the last stage also computes the loss."""
        table = forward_only(self._schedule.ranks, len(micro_batches), self._schedule.chunks)
        run = _Run(self, table, micro_batches, None, judge)
        run.all()
        return run


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


class _Run(Passage):
    """One pass through a table: stages forwards, the tape backwards."""

    def __init__(self, executor: Executor, schedule: Schedule, micro_batches, sink, judge: bool = True):
        super().__init__(schedule, executor._ranks, executor._peers)
        self._stages, self._loss = executor._stages, executor._loss
        self._batches, self._sink, self._judge = micro_batches, sink, judge
        self._inputs = [executor._inputs(batch) for batch in micro_batches]
        self.flights: dict[tuple[int, int], _Flight] = {}
        self.outputs: tuple[Tensor, ...] = ()  # of the last micro-batch on the last stage, where nothing is judged
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._parameters = [stage.trainable_params() for stage in self._stages]

    def all(self) -> None:
        super().all()
        assert not self.flights, "the table left forwards without a backward"

    def pairs(self) -> tuple[tuple[float, float], ...]:
        """What the last stage found, read only now: the host need not wait for each micro-batch."""
        return tuple((float(loss.asnumpy()), float(weight.asnumpy())) for loss, weight in self._pairs)

    def forward(self, action: Action) -> None:
        chunk, i = action.chunk, action.micro_batch
        stage, inputs = self._stages[chunk], self._inputs[i]
        training = self._sink is not None
        carried = () if stage.first else self.value("F", chunk, i)
        if training:
            carried = tuple(tape.leaf(x) for x in carried)
        with tape.recording(training):
            outputs = stage(carried, inputs)
            if stage.last and self._judge:
                loss_sum, weight_sum = self._loss(*outputs, self._batches[i])
                self._pairs.append((loss_sum, weight_sum))
                outputs = (loss_sum,)
            elif stage.last:
                self.outputs = outputs
            else:
                outputs = tuple(tape.same(y) if any(y is x for x in carried) else y for y in outputs)
        if training:
            self.flights[chunk, i] = _Flight(carried, outputs)
        if not stage.last:
            self.hand_on("F", chunk, i, outputs)

    def backward(self, action: Action) -> None:
        chunk, i = action.chunk, action.micro_batch
        stage, flight = self._stages[chunk], self.flights.pop((chunk, i))
        gradients = (Tensor(1.0, ms.float32),) if stage.last else self.value("B", chunk, i)
        parameters = self._parameters[chunk]
        wanted = [*parameters, *flight.carried]
        found = tape.backward(flight.outputs, gradients, wanted)
        found = [_zeros(x) if gradient is None else gradient for gradient, x in zip(found, wanted)]
        self._sink(i, parameters, found[:len(parameters)])
        if not stage.first:
            self.hand_on("B", chunk, i, tuple(found[len(parameters):]))

    def shapes(self, kind: str, chunk: int, i: int) -> tuple:
        if kind == "F":
            return self._stages[chunk].received(self._inputs[i])
        return tuple((y.shape, y.dtype) for y in self.flights[chunk, i].outputs)


def _zeros(x) -> Tensor:
    return mint.zeros(x.shape, dtype=x.dtype) if x.shape else Tensor(np.zeros((), np.float32), x.dtype)
