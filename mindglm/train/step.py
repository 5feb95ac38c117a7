"""One optimizer step: gradients of the micro-batches in one flat bucket, one all-reduce, clipping, update.

The bucket is [gradients of the parameters in the optimizer's order, loss_sum, weight_sum, terminated, interrupted]. One
vector means one collective and one read by the host a step; with the two flags in it all ranks learn at the same step
that one of them was told to stop.
"""

import time
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from mindglm.parallel import transport

TAIL = 4


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


def bucket_function(network, params, compiled: bool):
    """(flags (2,), *batch) -> bucket, float32 (total size of params + TAIL,).

    network(*batch) gives (loss_sum, weight_sum); the gradient is that of loss_sum. compiled: forward and backward
    become one graph by ms.jit, compiled anew for every new set of shapes.
    """
    value_and_grad = ms.value_and_grad(network, None, ms.ParameterTuple(params), has_aux=True)

    def bucket(flags, *batch):
        (loss_sum, weight_sum), grads = value_and_grad(*batch)
        pieces = []
        for grad in grads:
            pieces.append(grad.reshape(-1))
        pieces.append(loss_sum.reshape(1))
        pieces.append(weight_sum.reshape(1))
        pieces.append(flags)
        return mint.cat(pieces)

    return ms.jit(bucket) if compiled else bucket


class TrainStep:
    """Runs optimizer steps for a network whose trained parameters belong to `optimizer`."""

    def __init__(self, network, optimizer, wrapper, compiled: bool):
        """wrapper: the recipe's runner_wrapper section (use_clip_grad, max_grad_norm)."""
        self._bucket = bucket_function(network, optimizer.params, compiled)
        self._optimizer = optimizer
        self._max_norm = wrapper.max_grad_norm if wrapper.use_clip_grad else None

    def __call__(self, micro_batches, lr: float, updates: int, requests=None) -> StepResult:
        """micro_batches: this rank's tuples of arrays; updates: how many updates this one would make, from 1.

        requests: has `flags`, (terminated, interrupted); read as late as they can still reach the other ranks.
        """
        start = time.perf_counter()
        bucket = None
        for i, batch in enumerate(micro_batches, 1):
            flags = requests.flags if requests is not None and i == len(micro_batches) else (False, False)
            part = self._bucket(Tensor(np.array(flags, np.float32)), *(Tensor(array) for array in batch))
            bucket = part if bucket is None else bucket + part
        computed = time.perf_counter()
        bucket = transport.all_reduce_sum(bucket)
        size = self._optimizer.size
        grads = bucket[:size]
        tail = mint.cat((bucket[size:], mint.sum(grads * grads).reshape(1))).asnumpy()
        loss_sum, weight_sum, terminated, interrupted, square = (float(value) for value in tail)
        reduced = time.perf_counter()
        loss, norm = (loss_sum / weight_sum, square**0.5 / weight_sum) if weight_sum > 0 else (np.nan, np.nan)
        applied = bool(np.isfinite(loss) and np.isfinite(norm))
        if applied:
            clip = 1.0 if self._max_norm is None or norm <= self._max_norm else self._max_norm / norm
            self._optimizer.apply(grads * (clip / weight_sum), lr, updates)
        done = time.perf_counter()
        seconds = {"forward_backward": computed - start, "reduce": reduced - computed, "optimizer": done - reduced}
        return StepResult(loss, norm, applied, terminated > 0, interrupted > 0, seconds)


def learning_rates(recipe, stop_step: int) -> np.ndarray:
    """The learning rate of each optimizer step, float64 (stop_step,), by mindformers' own schedule class.

    Entry i is the schedule at i + 1: at 0 a warm-up gives 0, which would waste the first step.
    """
    from mindformers.core import lr as schedules  # 4 seconds; LOG_MF_PATH must be set before

    section = recipe.lr_schedule
    schedule = getattr(schedules, section.type)(
        learning_rate=section.learning_rate, lr_end=section.lr_end, warmup_steps=section.warmup_steps,
        total_steps=recipe.lr_total_steps)
    return np.array([float(np.asarray(schedule(Tensor(step, ms.int32)))) for step in range(1, stop_step + 1)])
