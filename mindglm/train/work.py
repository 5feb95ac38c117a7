"""Who computes the gradients of this rank's micro-batches: the whole network here, or a pipeline of stages.

Both are called with (micro_batches, sums): they give every micro-batch's gradients to `sums.add` and return
[(loss_sum, weight_sum)] as floats, one pair a micro-batch in order, on the rank that knows them and [] elsewhere.
"""

import functools
from collections import Counter

import mindspore as ms
from mindspore import Tensor


class LocalWork:
    """The whole network on this rank.

    network(*batch) gives (loss_sum, weight_sum); the gradient is that of loss_sum. compiled: forward and backward
    become one graph by ms.jit, compiled anew for every new set of shapes.
    """

    def __init__(self, network, params, compiled: bool, overlaps: bool):
        """overlaps: hand over the last micro-batch's gradients one by one, as the backward makes them."""
        self._network, self._params, self._overlaps = network, params, overlaps and not compiled
        self._compiled = compiled
        self._gradients = gradient_function(network, params, compiled)
        self._loss = _OftenCompiled(network, compiled)

    def __call__(self, micro_batches, sums) -> list[tuple[float, float]]:
        pairs = []
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            tensors = tuple(Tensor(array) for array in batch)
            loss_sum, weight_sum, grads = self._hooked(tensors, sums, i) if last and self._overlaps else \
                self._gradients(*tensors)
            pairs.append((loss_sum, weight_sum))
            for number, grad in enumerate(grads):
                sums.add(number, grad, i, last)
        for batch in micro_batches:
            self._loss.expect(batch)
        return [(float(loss.asnumpy()), float(weight.asnumpy())) for loss, weight in pairs]

    def _hooked(self, tensors, sums, micro_batch: int):
        """As `_gradients` but for the gradients, which `sums` has got when this returns."""
        hooks = [parameter.register_hook(functools.partial(_give, sums, number, micro_batch))
                 for number, parameter in enumerate(self._params)]
        try:
            loss_sum, weight_sum, _ = self._gradients(*tensors)
        finally:
            for hook in hooks:
                hook.remove()
        return loss_sum, weight_sum, ()

    def evaluate(self, batches) -> tuple[float, float]:
        """(loss_sum, weight_sum) of batches, without gradients."""
        totals = [0.0, 0.0]
        for batch in batches:
            totals = [total + float(number.asnumpy()) for total, number in zip(totals, self._loss(batch))]
        return totals[0], totals[1]

    def predict(self, batch, read):
        """read(output of the model) of a batch, as an array."""
        return read(self._prediction(batch))

    @functools.cached_property
    def _prediction(self):
        return _OftenCompiled(self._network.predict, self._compiled)  # not every network predicts


class _OftenCompiled:
    """function(*batch), in a compiled run by ms.jit for those sets of shapes that come often enough to pay for it."""

    ENOUGH = 16

    def __init__(self, function, compiled: bool):
        def plain(*batch):
            return function(*batch)

        self._plain, self._compiled = plain, ms.jit(plain) if compiled else plain
        self._calls: Counter[tuple] = Counter()

    def expect(self, batch) -> None:
        """Batches of these shapes come often."""
        self._calls[_shapes(batch)] = self.ENOUGH

    def __call__(self, batch):
        shapes = _shapes(batch)
        self._calls[shapes] += 1
        function = self._compiled if self._calls[shapes] > self.ENOUGH else self._plain
        return function(*(Tensor(array) for array in batch))


class PipelineWork:
    """This rank's stages of a pipeline (one stage, too: the executor is what can recompute)."""

    def __init__(self, executor, params):
        """params: the optimizer's parameters."""
        self._executor, self._count = executor, 0
        self._numbers = {parameter.name: number for number, parameter in enumerate(params)}

    def __call__(self, micro_batches, sums) -> list[tuple[float, float]]:
        given = dict.fromkeys(self._numbers, 0)

        def sink(micro_batch, parameters, gradients):
            for parameter, gradient in zip(parameters, gradients):
                given[parameter.name] = given[parameter.name] + 1
                sums.add(self._numbers[parameter.name], gradient, micro_batch,
                         given[parameter.name] == len(micro_batches))

        result = self._executor(micro_batches, sink)
        return list(result.pairs)

    def evaluate(self, batches) -> tuple[float, float]:
        """As LocalWork.evaluate."""
        return self._executor.evaluate(list(batches))

    def predict(self, batch, read):
        """As LocalWork.predict, on every rank of the pipeline; all of them call it."""
        return self._executor.predict(batch, read)


def _shapes(batch) -> tuple:
    return tuple(array.shape for array in batch)


def gradient_function(network, params, compiled: bool):
    """batch -> (loss_sum, weight_sum, gradients of loss_sum in the order of params)."""
    value_and_grad = ms.value_and_grad(network, None, ms.ParameterTuple(params), has_aux=True)

    def gradients(*batch):
        (loss_sum, weight_sum), grads = value_and_grad(*batch)
        return loss_sum, weight_sum, grads

    return ms.jit(gradients) if compiled else gradients


def _give(sums, number: int, micro_batch: int, grad):
    sums.add(number, grad, micro_batch, True)
    return grad
