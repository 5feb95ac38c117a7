"""One optimizer step: gradients of the micro-batches, their sum over the ranks, clipping by the global norm, update.

After the gradients one small vector is added up over all ranks: loss_sum, weight_sum, the squared norm, and whether a
rank was told to stop. So all ranks, of whatever stage and share of the data, divide by the weight of the whole global
batch, clip by the norm of the whole gradient, skip the same steps and learn at the same step that one has to leave.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindglm.parallel import transport
from mindglm.train import pipeline, precision
from mindglm.train.gradients import RunningSum, TreeSum
from mindglm.train.work import LocalWork, PipelineWork


@dataclass(frozen=True)
class StepResult:
    """What one step did; the same on every rank, but for the seconds."""

    loss: float
    grad_norm: float
    """Global norm of the gradient of the mean loss, before clipping."""
    applied: bool
    """False: loss or gradient was not finite and the weights stayed as they were."""
    terminated: bool
    interrupted: bool
    seconds: dict[str, float]
    gradients: list[Tensor] | None = None
    """Of a step that was not applied: this rank's part of each bucket of the gradient sum. None: it was applied."""


class TrainStep:
    """Runs optimizer steps: `work` computes gradients, `sums` adds them up, `optimizer` applies them."""

    def __init__(self, work, sums, optimizer, wrapper, exact: bool = False):
        """wrapper: the recipe's runner_wrapper section. exact: add numbers of ranks without rounding on the way."""
        self._work, self._sums, self._optimizer = work, sums, optimizer
        self._max_norm = wrapper.max_grad_norm if wrapper.use_clip_grad else None
        self._agree = _agree_exactly if exact else _agree

    def __call__(self, micro_batches, lr: float, updates: int, requests=None) -> StepResult:
        """micro_batches: this rank's tuples of arrays; updates: how many updates this one would make, from 1.

        requests: has `flags`, (terminated, interrupted); read as late as they can still reach the other ranks.
        """
        start = time.perf_counter()
        self._sums.begin()
        pairs = self._work(micro_batches, self._sums)
        computed = time.perf_counter()
        grads = self._sums.finish()
        flags = requests.flags if requests is not None else (False, False)
        loss_sum, weight_sum, square, terminated, interrupted = self._agree(pairs, self._sums.squares(), flags)
        reduced = time.perf_counter()
        loss, norm = (loss_sum / weight_sum, square**0.5 / weight_sum) if weight_sum > 0 else (math.nan, math.nan)
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            clip = 1.0 if self._max_norm is None or norm <= self._max_norm else self._max_norm / norm
            self._optimizer.apply(grads, clip / weight_sum, lr, updates)
        done = time.perf_counter()
        seconds = {"forward_backward": computed - start, "reduce": reduced - computed, "optimizer": done - reduced}
        return StepResult(loss, norm, applied, terminated > 0, interrupted > 0, seconds,
                          None if applied else grads)

    def evaluate(self, batches) -> tuple[float, float]:
        """(loss_sum, weight_sum) of this rank's batches, without gradients; zeros on a rank that does not know them."""
        return self._work.evaluate(batches)

    def predict(self, batch, read) -> np.ndarray:
        """read(what the model makes of a batch); called by all ranks of a pipeline, of which each gets it."""
        return self._work.predict(batch, read)


def build_step(recipe, objective, optimizer) -> TrainStep:
    """The TrainStep that a recipe asks for."""
    exact = recipe.micro_batches if recipe.strict_numerics else 0
    dtype = precision.reduce_dtype(recipe.precision)
    if not recipe.runs_stages:
        return local_step(objective.network, optimizer, recipe.runner_wrapper, recipe.context.mode == 0, dtype, exact)
    executor = pipeline.executor(recipe, objective, optimizer.space.layout)
    sums = _sums(optimizer.space, objective.model, dtype, exact)
    return TrainStep(PipelineWork(executor, optimizer.params), sums, optimizer, recipe.runner_wrapper, bool(exact))


def local_step(network, optimizer, wrapper, compiled: bool, reduce_dtype=ms.float32,
               exact_micro_batches: int = 0) -> TrainStep:
    """The TrainStep of a network that this rank holds whole.

    exact_micro_batches: micro-batches of a rank, when sums shall not depend on the layout (strict_numerics); else 0.
    """
    overlaps = optimizer.space.layout.data_parallel > 1 and not exact_micro_batches
    sums = _sums(optimizer.space, network, reduce_dtype, exact_micro_batches)
    return TrainStep(LocalWork(network, optimizer.params, compiled, overlaps), sums, optimizer, wrapper,
                     bool(exact_micro_batches))


def _sums(space, network, reduce_dtype, exact_micro_batches: int):
    if exact_micro_batches:
        return TreeSum(space, exact_micro_batches)
    return RunningSum(space, [parameter.name for parameter in network.trainable_params()], reduce_dtype)


def _agree(pairs, squares, flags) -> list[float]:
    """Sums over all ranks: loss_sum, weight_sum, squared norm, and the two flags."""
    mine = [sum(loss for loss, _ in pairs), sum(weight for _, weight in pairs), sum(squares), *map(float, flags)]
    if transport.world() == 1:
        return mine
    return transport.all_reduce_sum(Tensor(np.array(mine, np.float32)), tag="loss and norm").asnumpy().tolist()


def _agree_exactly(pairs, squares, flags) -> list[float]:
    """As `_agree`, each sum rounded once at its end: the same whichever rank held which numbers."""
    everyone = transport.gather_objects((pairs, squares, flags))
    pairs = [pair for rank_pairs, _, _ in everyone for pair in rank_pairs]
    squares = [square for _, rank_squares, _ in everyone for square in rank_squares]
    flags = [float(any(flag)) for flag in zip(*(rank_flags for _, _, rank_flags in everyone))]
    return [*(_exact_sum(numbers) for numbers in ([p[0] for p in pairs], [p[1] for p in pairs], squares)), *flags]


def _exact_sum(numbers: list[float]) -> float:
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else math.nan


def learning_rates(recipe) -> Callable[[int], float]:
    """The learning rate as a function of the steps already done, by mindformers' own schedule class.

    After i steps it is the schedule at i + 1: at 0 a warm-up gives 0, which would waste the first step.
    """
    from mindformers.core import lr as schedules  # 4 seconds; LOG_MF_PATH must be set before

    section = recipe.lr_schedule
    schedule = getattr(schedules, section.type)(
        learning_rate=section.learning_rate, lr_end=section.lr_end, warmup_steps=section.warmup_steps,
        total_steps=recipe.lr_total_steps)
    if recipe.context.mode == 0:  # operation by operation it keeps 900 bytes a step on CPU: tests/ops/test_leak.py
        schedule = ms.jit(schedule)
    return lambda done: float(np.asarray(schedule(Tensor(done + 1, ms.int32))))
