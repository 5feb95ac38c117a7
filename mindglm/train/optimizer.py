"""AdamW with decoupled weight decay (Loshchilov & Hutter, 2019), equal to torch.optim.AdamW, over one flat gradient.

The gradient of all trained parameters arrives as one float32 vector in the order of `params`: those with weight decay
first, then those without. On CPU each of the two groups is one piece of host memory that the Parameters share, so that
an update is two kernel calls however many tensors a model has (150 tensors: 7 ms instead of 60). On Ascend MindSpore's
own `mint.optim.AdamW` does the same arithmetic parameter by parameter.
"""

import numpy as np
from mindspore import Parameter, Tensor, mint
from mindspore import ops as ms_ops

from mindglm import ops

MOMENTS = ("adam_m", "adam_v")


def decays(name: str, shape: tuple[int, ...], no_decay: tuple[str, ...]) -> bool:
    """Whether a parameter gets weight decay: neither one-dimensional nor named by a fragment of `no_decay`."""
    return len(shape) > 1 and not any(fragment in name for fragment in no_decay)


def build(params: list[Parameter], section):
    """The optimizer of this device for the recipe's `optimizer` section."""
    kind = HostAdamW if ops.DEVICE == "cpu" else MintAdamW
    return kind(params, section)


class _AdamW:
    """What both forms share: the order of parameters and where each lies in the flat gradient."""

    def __init__(self, params: list[Parameter], section):
        wrong = [p.name for p in params if "Float32" not in str(p.dtype)]
        assert not wrong, f"trained parameters must be float32 masters: {wrong[:3]}"
        flags = {p.name: decays(p.name, p.shape, section.no_decay) for p in params}
        assert len(flags) == len(params), "two trained parameters share a name"
        self.params = [p for p in params if flags[p.name]] + [p for p in params if not flags[p.name]]
        self.section = section
        ends = np.cumsum([p.size for p in self.params]).tolist()
        self.spans = {p.name: (end - p.size, end) for p, end in zip(self.params, ends)}
        self.size = ends[-1] if ends else 0
        self.split = sum(p.size for p in params if flags[p.name])
        """Length of the part with weight decay."""

    def named(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """A flat vector in the order of `params` as {parameter name: view in its shape}."""
        return {p.name: flat[slice(*self.spans[p.name])].reshape(p.shape) for p in self.params}


class HostAdamW(_AdamW):
    """The CPU form. Weights, m and v are flat NumPy arrays whose memory the MindSpore tensors share."""

    def __init__(self, params: list[Parameter], section):
        super().__init__(params, section)
        self._weights = np.empty(self.size, np.float32)
        self._moments = [np.zeros(self.size, np.float32) for _ in MOMENTS]
        self._homes = {p.name: view for p, view in zip(self.params, self.named(self._weights).values())}
        self._address = {p.name: self._homes[p.name].ctypes.data for p in self.params}
        self.absorb()
        self._kernel = ms_ops.AdamWeightDecay()
        self._groups = []
        for start, end, decay in ((0, self.split, section.weight_decay), (self.split, self.size, 0.0)):
            if end > start:
                arrays = [array[start:end] for array in (self._weights, *self._moments)]
                self._groups.append((start, end, decay, *map(_sharing, arrays)))

    def absorb(self) -> None:
        """Take over the values of Parameters that others gave new storage (`set_data`), and give them back their place.

        A graph compiled by ms.jit keeps the storage it was compiled with, so only values in place reach it.
        """
        for p in self.params:
            if p.data_ptr() != self._address[p.name]:
                np.copyto(self._homes[p.name], p.asnumpy())
                p.set_data(Tensor.from_numpy(self._homes[p.name]))

    def apply(self, grads: Tensor, lr: float, updates: int) -> None:
        """One update. grads: float32 (size,); updates: how many this makes, from 1."""
        beta1, beta2 = self.section.betas
        # The kernel has no bias correction: fold it into lr and eps (exact, decay divided back).
        c1, c2 = 1 - beta1**updates, (1 - beta2**updates) ** 0.5
        for start, end, decay, weights, m, v in self._groups:
            self._kernel(weights, m, v, lr * c2 / c1, beta1, beta2, self.section.eps * c2, decay * c1 / c2,
                         grads[start:end])

    def weights(self) -> np.ndarray:
        """The trained weights, flat; not a copy."""
        return self._weights

    def set_weights(self, flat: np.ndarray) -> None:
        np.copyto(self._weights, flat)

    def state(self) -> dict[str, np.ndarray]:
        """{adam_m.<name>, adam_v.<name>}: views of the moments."""
        return {f"{kind}.{name}": view for kind, flat in zip(MOMENTS, self._moments)
                for name, view in self.named(flat).items()}

    def load_state(self, state: dict[str, np.ndarray], updates: int) -> None:
        """Continue from moments that `state` gave, after `updates` updates."""
        for name, view in self.state().items():
            np.copyto(view, state[name])


def _sharing(array: np.ndarray) -> Parameter:
    parameter = Parameter(Tensor(np.zeros(1, np.float32)), requires_grad=False)
    parameter.set_data(Tensor.from_numpy(array), slice_shape=True)  # the constructor would copy
    return parameter


class MintAdamW(_AdamW):
    """The Ascend form: MindSpore's own AdamW (aclnn kernel), parameter by parameter."""

    def __init__(self, params: list[Parameter], section):
        super().__init__(params, section)
        groups = [(p for p in self.params if self.spans[p.name][1] <= self.split),
                  (p for p in self.params if self.spans[p.name][1] > self.split)]
        groups = [{"params": list(group), "weight_decay": float(decay)}
                  for group, decay in zip(groups, (section.weight_decay, 0.0))]
        self._optimizer = mint.optim.AdamW([group for group in groups if group["params"]],
                                           betas=tuple(section.betas), eps=section.eps)

    def absorb(self) -> None:
        """Nothing to do: the optimizer writes into whatever storage a Parameter has."""

    def apply(self, grads: Tensor, lr: float, updates: int) -> None:
        """One update. grads: float32 (size,); updates: how many this makes, from 1."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        pieces = mint.split(grads, [p.size for p in self.params])
        self._optimizer(tuple(piece.reshape(p.shape) for piece, p in zip(pieces, self.params)))

    def weights(self) -> np.ndarray:
        """The trained weights, flat; a copy."""
        return np.concatenate([p.asnumpy().reshape(-1) for p in self.params])

    def set_weights(self, flat: np.ndarray) -> None:
        for p, values in zip(self.params, self.named(flat).values()):
            p.copy_(Tensor(values))

    def state(self) -> dict[str, np.ndarray]:
        """{adam_m.<name>, adam_v.<name>}: copies of the moments."""
        moments = zip(MOMENTS, (self._optimizer.exp_avg, self._optimizer.exp_avg_sq))
        return {f"{kind}.{p.name}": m.asnumpy().copy() for kind, ms in moments for p, m in zip(self.params, ms)}

    def load_state(self, state: dict[str, np.ndarray], updates: int) -> None:
        """Continue from moments that `state` gave, after `updates` updates."""
        for kind, moments in zip(MOMENTS, (self._optimizer.exp_avg, self._optimizer.exp_avg_sq)):
            for p, m in zip(self.params, moments):
                m.copy_(Tensor(state[f"{kind}.{p.name}"]))
        self._optimizer.state_step.copy_(Tensor([updates - 1.0], self._optimizer.state_step.dtype))
