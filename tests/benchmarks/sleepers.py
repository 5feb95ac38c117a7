"""Pipeline work that takes a known time and no processor: stages and units that sleep."""

import time

import mindspore as ms
from mindspore import Tensor, mint, nn
from mindspore.common._grad_function import _Function

from mindglm import ops
from mindglm.parallel.passage import Passage
from mindglm.plan.schedules import Action


class _Sleep(_Function):
    """x, after `unit` seconds; its gradient takes twice as long."""

    @staticmethod
    def forward(ctx, x, unit):
        ctx.unit = unit
        time.sleep(unit)
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(2 * ctx.unit)
        return gradient * 1.0, None


class SleepingStage(nn.Cell):
    """A stage for parallel.pipeline.Executor."""

    def __init__(self, first: bool, last: bool, unit: float, width: int):
        super().__init__(auto_prefix=False)
        self.first, self.last, self._unit, self._width = first, last, unit, width
        self.scale = ops.param((1,), "ones")

    def received(self, inputs) -> tuple:
        return () if self.first else (((self._width,), ms.float32),)

    def construct(self, carried: tuple, inputs) -> tuple:
        x = mint.ones((self._width,)) if self.first else carried[0]
        return (_Sleep.apply(x * self.scale, self._unit),)


class SleepingPassage(Passage):
    """A table whose every unit, W too, sleeps for the same time; what travels is real."""

    def __init__(self, schedule, ranks, peers, unit: float, width: int):
        super().__init__(schedule, ranks, peers)
        self._unit, self._message = unit, Tensor([1.0] * width, ms.float32)

    def forward(self, action: Action) -> None:
        self._unit_of("F", action, takes=self.place > 0, gives=self.place < len(self._ranks) - 1)

    def backward(self, action: Action) -> None:
        self._unit_of("B", action, takes=self.place < len(self._ranks) - 1, gives=self.place > 0)

    def weight(self, action: Action) -> None:
        time.sleep(self._unit)

    def shapes(self, kind: str, chunk: int, i: int) -> tuple:
        return ((self._message.shape, ms.float32),)

    def _unit_of(self, kind: str, action: Action, takes: bool, gives: bool) -> None:
        if takes:
            self.value(kind, action.chunk, action.micro_batch)
        time.sleep(self._unit)
        if gives:
            self.hand_on(kind, action.chunk, action.micro_batch, (self._message,))
