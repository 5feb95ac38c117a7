"""Who computes the gradients of this rank's micro-batches: the whole network here, or a pipeline of stages.

Both are called with (micro_batches, sums): they give every micro-batch's gradients to `sums.add` and return
[(loss_sum, weight_sum)] as floats, one pair a micro-batch in order, on the rank that knows them and [] elsewhere.
"""

import functools

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
        self._gradients = gradient_function(network, params, compiled)
        self._compiled_loss = ms.jit(self._loss) if compiled else self._loss
        self._shapes: set[tuple] = set()  # of the micro-batches trained on; pictures of several sizes give several

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
        self._shapes.update(map(_shapes, micro_batches))
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
            # A batch of a shape that training never had, the odd rest of a split, is not worth a compilation.
            loss = self._compiled_loss if _shapes(batch) in self._shapes else self._loss
            pair = loss(*(Tensor(array) for array in batch))
            totals = [total + float(number.asnumpy()) for total, number in zip(totals, pair)]
        return totals[0], totals[1]

    def predict(self, batch, read):
        """read(output of the model) of a batch, as an array."""
        return read(self._network.predict(*(Tensor(array) for array in batch)))

    def _loss(self, *batch):
        return self._network(*batch)


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
