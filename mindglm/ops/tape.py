"""MindSpore's PyNative tape, with several forwards in flight: the one file that touches its private interface.

The public functions (`ms.value_and_grad`, `ms.vjp`) either run forward and backward in one go or keep forwards as a
stack; a pipeline needs them as a queue. `run_backward`, on which they are built, has no such limit.
`tests/ops/test_tape.py` pins what is relied on, so that an upgrade of MindSpore that changes it is named at once.

The tape cannot separate input gradients from weight gradients for free: a second `backward` over the same graph
computes the input gradients again. Hence the executor refuses the schedule zb_h1.
"""

from contextlib import contextmanager

from mindspore import ops
from mindspore._c_expression import run_backward
from mindspore.common._grad_function import _Function
from mindspore.graph.api import _pynative_executor


@contextmanager
def recording(on: bool = True):
    """Operations inside are recorded for `backward`, or with on=False not recorded."""
    flag, enabled = _pynative_executor.grad_flag(), _pynative_executor.enable_grad()
    _pynative_executor.set_grad_flag(on)
    _pynative_executor.set_enable_grad(on)
    try:
        yield
    finally:
        _pynative_executor.set_grad_flag(flag)
        _pynative_executor.set_enable_grad(enabled)


def leaf(x):
    """A Tensor of x's value, cut off from what made it, whose gradient `backward` can give."""
    y = ops.stop_gradient(x)
    y.requires_grad_(True)
    return y


def same(x):
    """x as a new node of the tape, without a copy.

    A stage that hands on a tensor it received returns this: the gradient that comes back for it is then the first
    term of the sum to which the stage's own uses add theirs, in the order in which one undivided graph adds them.
    """
    return x.view(x.shape)


def backward(outputs, gradients, inputs, keep: bool = False) -> tuple:
    """Gradients of `inputs` (leaves, trainable Parameters), None where the outputs do not depend on one.

    Args:
        outputs: Tensors made under `recording`. gradients: of the same shapes and dtypes.
        keep: the graph may be used once more. Otherwise it is freed, and RuntimeError if it is used again.
    """
    return run_backward(tuple(outputs), tuple(gradients), keep, False, tuple(inputs), True, accumulate_grad=False)


class _Recomputed(_Function):
    """`function(*tensors)` that keeps only its arguments and runs again in the backward pass."""

    @staticmethod
    def forward(ctx, function, count, *arguments):
        ctx.function, ctx.count, ctx.parameters = function, count, arguments[count:]
        ctx.save_for_backward(*arguments[:count])
        with recording(False):
            return function(*arguments[:count])

    @staticmethod
    def backward(ctx, *gradients):
        leaves = [leaf(x) for x in ctx.saved_tensors]
        with recording():
            outputs = ctx.function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return (None, None, *backward(outputs, gradients, [*leaves, *ctx.parameters]))


def recomputed(function, tensors, parameters):
    """function(*tensors), its inner activations computed again in the backward pass instead of kept.

    Works under `recording` and under ms.value_and_grad.

    Args:
        function: pure; returns a Tensor or a tuple of Tensors, all of them floating point.
        tensors: its floating point Tensors. What else it needs (masks, tables) it holds itself.
        parameters: the trainable Parameters it uses.
    """
    return _Recomputed.apply(function, len(tensors), *tensors, *parameters)
