"""AdamW with decoupled weight decay (Loshchilov & Hutter, 2019), equal to torch.optim.AdamW, bucket by bucket.

Master weights and both moments are float32 and lie as `buckets.FlatSpace` says; with `sharded` (ZeRO-1) a rank keeps
only its part of them and the ranks join their updated parts afterwards. On CPU the master weights are one piece of host
memory that the Parameters share. On Ascend MindSpore's own `mint.optim.AdamW` updates one vector a bucket, and the
Parameters, float32 or bfloat16, are set from it.
"""

from collections.abc import Callable

import numpy as np
from mindspore import Parameter, Tensor, mint
from mindspore import float32 as ms_float32

from mindglm import ops
from mindglm.parallel import transport
from mindglm.train import adamw
from mindglm.train.buckets import ELEMENTS, FlatSpace
from mindglm.train.layout import Layout

MOMENTS = ("adam_m", "adam_v")


def decays(name: str, shape: tuple[int, ...], no_decay: tuple[str, ...]) -> bool:
    """Whether a parameter gets weight decay: neither one-dimensional nor named by a fragment of `no_decay`."""
    return len(shape) > 1 and not any(fragment in name for fragment in no_decay)


def build(params: list[Parameter], section, layout: Layout = Layout(), sharded: bool = False,
          elements: int = ELEMENTS):
    """The optimizer of this device for the recipe's `optimizer` section.

    sharded: this rank keeps its part of the masters and moments only. elements: size of a bucket.
    """
    kind = HostAdamW if ops.DEVICE == "cpu" else MintAdamW
    return kind(params, section, layout, sharded, elements)


class _AdamW:
    """What both forms share. `params`: in the order of flat vectors, those with weight decay first.

    An "owned" vector holds this rank's part of every bucket (all of it when not sharded). Methods that say "collective"
    are called by all ranks of the data-parallel group.
    """

    def __init__(self, params: list[Parameter], section, layout: Layout, sharded: bool, elements: int):
        flags = {p.name: decays(p.name, p.shape, section.no_decay) for p in params}
        assert len(flags) == len(params), "two trained parameters share a name"
        self.params = [p for p in params if flags[p.name]] + [p for p in params if not flags[p.name]]
        self.section = section
        self.space = FlatSpace(self.params, [flags[p.name] for p in self.params], layout, sharded, elements)
        self.size = sum(p.size for p in params)
        self.before_change: Callable[[], object] = lambda: None
        """Called before weights or moments change, and so before the average does, which follows them: whoever still
        copies them in another thread (train/saver.py) ends that first."""

    def named(self, owned: np.ndarray) -> dict[str, np.ndarray]:
        """{parameter name: whole array} of owned vectors; views when not sharded. Collective."""
        return self.space.named(self.space.join(owned))

    def owned(self, named: dict[str, np.ndarray]) -> np.ndarray:
        """The inverse of `named`, without communication."""
        return self.space.take(self.space.flat(named))


class HostAdamW(_AdamW):
    """The CPU form. The masters are the weights: flat NumPy memory that the float32 Parameters share."""

    def __init__(self, params: list[Parameter], section, layout: Layout = Layout(), sharded: bool = False,
                 elements: int = ELEMENTS):
        super().__init__(params, section, layout, sharded, elements)
        wrong = [p.name for p in params if p.dtype != ms_float32]
        assert not wrong, f"on CPU trained parameters are float32: {wrong[:3]}"
        self._weights = np.zeros(self.space.size, np.float32)
        self._moments = [np.zeros(self.space.owned_size, np.float32) for _ in MOMENTS]
        self._homes = self.space.named(self._weights)
        self._address = {name: home.ctypes.data for name, home in self._homes.items()}
        self.absorb()

    def absorb(self) -> None:
        """Take over the values of Parameters that others gave new storage (`set_data`), and give them back their place.

        A graph compiled by ms.jit keeps the storage it was compiled with, so only values in place reach it.
        """
        self.before_change()
        for p in self.params:
            if p.data_ptr() != self._address[p.name]:
                np.copyto(self._homes[p.name], p.asnumpy())
                p.set_data(Tensor.from_numpy(self._homes[p.name]))

    def apply(self, grads: list[Tensor], scale: float, lr: float, updates: int) -> None:
        """One update; collective when sharded.

        grads: float32, this rank's part of each bucket. scale: what they are multiplied with. updates: how many this
        makes, from 1.
        """
        self.before_change()
        section, space = self.section, self.space
        for bucket, grad in zip(space.buckets, grads):
            mine = space.owned_range(bucket)
            adamw.update(self._weights[space.owned_of(bucket)], self._moments[0][mine], self._moments[1][mine],
                         grad.asnumpy(), scale, lr, section.weight_decay if bucket.decay else 0.0, section.betas,
                         section.eps, updates)
        self._publish()

    def _publish(self) -> None:
        """Fetch the parts of the weights that other ranks own."""
        if self.space.shards > 1:
            np.copyto(self._weights, self.space.join(self.masters()))

    def masters(self) -> np.ndarray:
        """Master weights, owned; not a copy unless sharded."""
        return self.space.take(self._weights)

    def set_masters(self, owned: np.ndarray) -> None:
        """Replace the weights. Collective."""
        self.before_change()
        np.copyto(self._weights, self.space.join(owned))

    def moments(self) -> list[np.ndarray]:
        """First and second moment, owned; not copies."""
        return self._moments

    def set_moment(self, number: int, owned: np.ndarray, updates: int) -> None:
        """Replace moment 0 or 1 by what it was after `updates` updates."""
        self.before_change()
        np.copyto(self._moments[number], owned)


class MintAdamW(_AdamW):
    """The Ascend form: MindSpore's own AdamW (aclnn kernel) on float32 masters, one Parameter a bucket."""

    def __init__(self, params: list[Parameter], section, layout: Layout = Layout(), sharded: bool = False,
                 elements: int = ELEMENTS):
        super().__init__(params, section, layout, sharded, elements)
        start = self.owned({p.name: p.astype(ms_float32).asnumpy() for p in self.params})
        self._masters = []
        for i, bucket in enumerate(self.space.buckets):
            part = Tensor(start[self.space.owned_range(bucket)])
            self._masters.append(Parameter(part, name=f"masters.{i}"))
        groups = [([m for m, b in zip(self._masters, self.space.buckets) if b.decay], section.weight_decay),
                  ([m for m, b in zip(self._masters, self.space.buckets) if not b.decay], 0.0)]
        self._optimizer = mint.optim.AdamW(
            [{"params": group, "weight_decay": float(decay)} for group, decay in groups if group],
            betas=tuple(section.betas), eps=section.eps)

    def absorb(self) -> None:
        """Take over Parameters that others changed: those elements that are no longer the rounded master."""
        whole = self.space.join(self.masters())
        for p, values in zip(self.params, self.space.named(whole).values()):
            now, was = p.astype(ms_float32).asnumpy(), Tensor(values).astype(p.dtype).astype(ms_float32).asnumpy()
            np.copyto(values, now, where=now != was)
        self._set(self.space.take(whole))

    def apply(self, grads: list[Tensor], scale: float, lr: float, updates: int) -> None:
        """One update; arguments as HostAdamW.apply. Collective when sharded."""
        self.before_change()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer(tuple(grad * scale for grad in grads))
        self._publish()

    def _publish(self) -> None:
        """Set the Parameters from the masters, those of other ranks included."""
        for bucket, master in zip(self.space.buckets, self._masters):
            members = [self.params[i] for i in bucket.members]
            whole = master.astype(members[0].dtype)
            if self.space.shards > 1:
                whole = transport.all_gather(whole, self.space.layout.data_group, "weights")
            pieces = mint.split(mint.narrow(whole, 0, 0, bucket.size), [p.size for p in members])
            for p, piece in zip(members, pieces):
                p.copy_(piece.reshape(p.shape).copy())  # a view of the bucket is not copied rightly on CPU

    def masters(self) -> np.ndarray:
        """Master weights, owned; a copy."""
        return np.concatenate([master.asnumpy() for master in self._masters])

    def set_masters(self, owned: np.ndarray) -> None:
        """Replace the weights. Collective."""
        self._set(owned)
        self._publish()

    def _set(self, owned: np.ndarray) -> None:
        self.before_change()
        for bucket, master in zip(self.space.buckets, self._masters):
            master.copy_(Tensor(owned[self.space.owned_range(bucket)]))

    def moments(self) -> list[np.ndarray]:
        """First and second moment, owned; copies."""
        moments = self._optimizer.exp_avg, self._optimizer.exp_avg_sq
        return [np.concatenate([part.asnumpy() for part in parts]) for parts in moments]

    def set_moment(self, number: int, owned: np.ndarray, updates: int) -> None:
        """Replace moment 0 or 1 by what it was after `updates` updates."""
        self.before_change()
        parts = (self._optimizer.exp_avg, self._optimizer.exp_avg_sq)[number]
        for bucket, part in zip(self.space.buckets, parts):
            part.copy_(Tensor(owned[self.space.owned_range(bucket)]))
        self._optimizer.state_step.copy_(Tensor([updates - 1.0], self._optimizer.state_step.dtype))
