"""Does the step of a capsule again, alone and in float32, and says why it failed: data, numerics or transient.

    transient   the same inputs and weights give finite numbers here: a fault of memory, device or network
    data        inputs that are not finite, or samples far outside the others, which alone make the step fail
    numerics    sound inputs and these weights do not go together, whatever the sample
"""

import math
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindglm import recipe as recipes
from mindglm.checkpoint import store
from mindglm.checkpoint.tensors import to_float32
from mindglm.errors import UserError
from mindglm.train import objectives
from mindglm.train.batches import collate
from mindglm.train.capsule import Capsule
from mindglm.train.weights import all_parameters, trained_parameters
from mindglm.train.work import gradient_function

OUTLIER = 100.0
"""A sample whose largest input value is so many times that of the sound samples lies outside them."""
LISTED = 5


@dataclass(frozen=True)
class Verdict:
    """Why the step failed."""

    kind: str
    """data | numerics | transient"""
    reasons: tuple[str, ...]
    """What was seen, in sentences."""


class Bench:
    """The model of the run, whole, with the weights of the capsule."""

    def __init__(self, capsule: Capsule):
        self.recipe = recipes.loads(capsule.recipe_text, str(capsule.folder / "recipe.yaml"))
        self.objective = objectives.build(self.recipe)
        self.objective.network.set_train(True)
        loaded = store.load(capsule.folder / "weights").tensors["model"]
        parameters = all_parameters(self.objective)
        if set(parameters) != set(loaded):
            raise UserError(f"{capsule.folder}: its weights are those of another model than its recipe describes; "
                            f"differing tensors: {sorted(set(parameters) ^ set(loaded))[:LISTED]}")
        self.not_finite = []
        for name, parameter in parameters.items():
            values = loaded[name]  # in raw bfloat16 where the run's device kept frozen weights so
            values = to_float32(values) if values.dtype == np.uint16 else np.array(values)
            parameter.set_data(Tensor(values))
            if not np.isfinite(values).all():
                self.not_finite.append(name)
        self._gradients = gradient_function(
            self.objective.network, trained_parameters(self.objective, self.recipe.model.frozen), False)

    def outcome(self, batches) -> tuple[float, float]:
        """(loss, norm of its gradient) of micro-batches together."""
        loss, weight, sums = 0.0, 0.0, None
        for batch in batches:
            loss_sum, weight_sum, grads = self._gradients(*(Tensor(array) for array in batch))
            loss, weight = loss + float(loss_sum.asnumpy()), weight + float(weight_sum.asnumpy())
            arrays = [grad.asnumpy() for grad in grads]
            sums = arrays if sums is None else [a + b for a, b in zip(sums, arrays)]
        square = sum(float(np.square(array, dtype=np.float64).sum()) for array in sums)
        return (loss / weight, math.sqrt(square) / weight) if weight > 0 else (math.nan, math.nan)

    def first_not_finite(self, batch) -> str:
        """Where in the forward pass the first number that is not finite comes out, and how large numbers are before."""
        seen: list[tuple[str, float]] = []

        def watch(name):
            def hook(_, given, output):
                first = output[0] if isinstance(output, (tuple, list)) else output
                if isinstance(first, Tensor):
                    seen.append((name, float(np.abs(first.float().asnumpy()).max(initial=0))))
            return hook

        hooks = [cell.register_forward_hook(watch(name or "the model"))
                 for name, cell in self.objective.model.cells_and_names()]
        try:
            self.objective.network(*(Tensor(array) for array in batch))
        finally:
            for hook in hooks:
                hook.remove()
        for i, (name, largest) in enumerate(seen):
            if not math.isfinite(largest):
                before = f"; the largest value before it is {seen[i - 1][1]:.3g}, from '{seen[i - 1][0]}'" if i else ""
                return f"the output of '{name}' is the first that is not finite{before}"
        largest = f" (values up to {max(value for _, value in seen):.3g})" if seen else ""
        return f"every layer's output is finite{largest}; the loss or the backward pass is not"


def judge(capsule: Capsule, dataset=None) -> Verdict:
    """dataset: the run's training data; None: it is not here, and samples cannot be looked at one by one."""
    bench = Bench(capsule)
    if bench.not_finite:
        return Verdict("numerics", (f"{len(bench.not_finite)} tensors of the weights are not finite, e.g. "
                                    f"{', '.join(bench.not_finite[:LISTED])}: an earlier update overflowed",))
    loss, norm = bench.outcome(capsule.inputs)
    reasons = [f"here the step gives loss {loss:.6g} and gradient norm {norm:.6g}; the run had loss "
               f"{capsule.about['loss']} and gradient norm {capsule.about['grad_norm']}"]
    changed = False
    try:
        if dataset is not None and not _rebuilt_as_read(bench, capsule, dataset):
            reasons.append("the dataset gives other inputs now than the run has read")
            changed = True
    except (UserError, OSError, LookupError, ValueError, TypeError, AssertionError) as error:  # prepared anew, damaged
        reasons.append(f"the dataset here is not that of the run ({type(error).__name__}: {error})")
        dataset = None
    if math.isfinite(loss) and math.isfinite(norm):
        return Verdict("transient", (*reasons, "inputs and weights are sound: look at the logs of the device and of "
                                     "the network, and start the run again"))
    bad = next(batch for batch in capsule.inputs if not _finite(bench.outcome([batch])))
    if not all(_largest(batch) < math.inf for batch in capsule.inputs):
        return Verdict("data", (*reasons, "inputs of the step are not finite", *_broken_samples(capsule, dataset)))
    reasons.append(bench.first_not_finite(bad))
    if dataset is None or changed:  # other samples say nothing of those of the step
        largest = max(map(_largest, capsule.inputs))
        return Verdict("numerics", (*reasons, f"the inputs are finite and reach {largest:.3g}; the run's dataset is "
                                    "not here, so samples were not looked at one by one: values far above what the "
                                    "data should hold would make it a fault of the data"))
    return _by_sample(bench, capsule, dataset, reasons)


def _by_sample(bench: Bench, capsule: Capsule, dataset, reasons: list[str]) -> Verdict:
    """Each sample of the step alone: do all fail, some, or none?"""
    failing, sound = [], []
    for index, key in zip(capsule.about["samples"], capsule.about["keys"]):
        batch = collate(bench.objective, dataset, [index], [key], bench.recipe.seed, capsule.step, True)
        (sound if _finite(bench.outcome([batch])) else failing).append((index, _largest(batch)))
    count = len(capsule.about["samples"])
    if not failing or not sound:
        many = "all" if failing else "none"
        return Verdict("numerics", (*reasons, f"{many} of the {count} samples fail alone: it does not hang on the "
                                    "data; lower lr_schedule.learning_rate or raise its warm-up, and go on from an "
                                    "earlier checkpoint"))
    usual = max(largest for _, largest in sound)
    outside = [index for index, largest in failing if largest > OUTLIER * usual]
    named = _names(dataset, [index for index, _ in failing])
    reasons.append(f"{len(failing)} of the {count} samples fail alone: {named}")
    if outside:
        return Verdict("data", (*reasons, f"their input values reach {max(v for _, v in failing):.3g}, those of the "
                                f"other samples {usual:.3g}"))
    return Verdict("numerics", (*reasons, "their input values are as large as those of the others"))


def _rebuilt_as_read(bench: Bench, capsule: Capsule, dataset) -> bool:
    """Whether the dataset still gives the bytes that the run has read; every sample of the step is read."""
    samples, keys = capsule.about["samples"], capsule.about["keys"]
    size, same = len(samples) // len(capsule.inputs), True
    for i, batch in enumerate(capsule.inputs):
        part = slice(i * size, (i + 1) * size)
        again = collate(bench.objective, dataset, samples[part], keys[part], bench.recipe.seed, capsule.step, True)
        same = same and [array.tobytes() for array in again] == [array.tobytes() for array in batch]
    return same


def _broken_samples(capsule: Capsule, dataset) -> list[str]:
    if dataset is None:
        return ["the run's dataset is not here, so the samples are not named"]
    broken = [index for index in dict.fromkeys(capsule.about["samples"]) if math.isinf(_largest(
        [value for value in dataset[index].values() if isinstance(value, np.ndarray)]))]
    if broken:
        return [f"the dataset holds numbers that are not finite in {_names(dataset, broken)}; prepare them again"]
    return ["the dataset's samples are finite now: they were misread, or have been repaired since"]


def _names(dataset, indices: list[int]) -> str:
    names = [f"{dataset[index].get('id', index)} (number {index})" for index in indices[:LISTED]]
    return ", ".join(names) + (f" and {len(indices) - LISTED} more" if len(indices) > LISTED else "")


def _largest(batch) -> float:
    """The largest absolute value in the float arrays of a batch; inf where one is not finite."""
    values = [array for array in batch if array.dtype.kind == "f" and array.size]
    return max((float(np.abs(a).max()) if np.isfinite(a).all() else math.inf for a in values), default=0.0)


def _finite(numbers) -> bool:
    return all(map(math.isfinite, numbers))
