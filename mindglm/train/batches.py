"""Which arrays a rank computes on at a step: a pure function of (seed, step), prepared one step ahead in a thread.

Of a dataset with pictures of several sizes, each global batch holds one (order/buckets.py).
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mindglm import order
from mindglm.errors import UserError
from mindglm.ledger import Witness
from mindglm.recipe import sizes
from mindglm.train.layout import Layout

VIRTUAL_SAMPLES = 2**20


def members_of(dataset) -> tuple[np.ndarray, ...]:
    """The sample numbers of each bucket of a dataset; one that has no `members` is one bucket."""
    return dataset.members if hasattr(dataset, "members") else (np.arange(len(dataset)),)


class ProceduralDataset:
    """Stands for data that an objective draws itself: every sample is only its number."""

    def __len__(self) -> int:
        return VIRTUAL_SAMPLES

    def __getitem__(self, i: int) -> dict:
        return {"index": int(i), "id": str(i)}


class Batches:
    """The training batches of this rank.

    Each data-parallel rank takes its contiguous part of the global batch, in micro-batches of equal size; the stages of
    a pipeline take the same. Draws are keyed by (seed, step, sample id, purpose); a sample that a global batch holds
    twice gets other draws the second time.
    """

    def __init__(self, objective, dataset, seed: int, global_batch: int, accumulation: int, layout: Layout = Layout()):
        parts = layout.data_parallel * accumulation
        if global_batch % parts:
            raise UserError(f"runner_config.global_batch_size is {global_batch}, expected a multiple of {parts} = "
                            f"data_parallel {layout.data_parallel} x {accumulation} micro-batches a rank "
                            "(gradient_accumulation_steps x micro_batch_num)")
        self._objective, self._dataset, self._seed = objective, dataset, seed
        self._members = members_of(dataset)
        self._global, self.micro_size, self._accumulation = global_batch, global_batch // parts, accumulation
        self._first = layout.data_index * self.micro_size * accumulation
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead = None

    def ids(self, step: int) -> tuple[int, np.ndarray, list[int]]:
        """The global batch of optimizer step `step` (from 0): its bucket, its samples, and what draws are keyed by."""
        n = len(self._dataset)
        bucket, ids = order.bucket_batch(self._seed, step, self._global, self._members)
        seen, keys = Counter(), []
        for sample in ids.tolist():
            keys.append(sample + n * seen[sample])
            seen[sample] += 1
        return bucket, ids, keys

    def size(self, step: int) -> dict[str, str]:
        """{"size": WIDTHxHEIGHT} of a step where the dataset has several sizes, else {}: for metrics."""
        if len(self._members) == 1:
            return {}
        bucket, _ = order.bucket_turn(self._seed, step, [len(own) for own in self._members])
        return {"size": sizes.name(self._dataset.sizes[bucket])}

    def make(self, step: int) -> tuple[list[tuple[np.ndarray, ...]], Witness]:
        """The micro-batches of optimizer step `step`, and what was read and drawn for them."""
        _, ids, keys = self.ids(step)
        batches, witness = [], Witness()
        for i in range(self._accumulation):
            part = slice(self._first + i * self.micro_size, self._first + (i + 1) * self.micro_size)
            batches.append(collate(self._objective, self._dataset, ids[part], keys[part], self._seed, step, True,
                                   witness, part.start))
        return batches, witness

    def take(self, step: int, last: bool) -> tuple[list[tuple[np.ndarray, ...]], Witness]:
        """As `make`, begun while the step before was computed; `last`: no step follows."""
        future = self._ahead or self._thread.submit(self.make, step)
        made = future.result()
        self._ahead = None if last else self._thread.submit(self.make, step + 1)
        return made

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def collate(objective, dataset, ids, keys, seed: int, step: int, training: bool, witness: Witness | None = None,
            first: int = 0) -> tuple[np.ndarray, ...]:
    """The arrays of the samples `ids`, drawn under `keys`; validation draws are a stream apart and never change.

    witness: hears of every sample and every generator. first: place of the first sample in the global batch.
    """
    prefix, step = ("", step) if training else ("validation/", 0)

    def draw(i: int, purpose: str) -> np.random.Generator:
        generator = order.rng(seed, step, int(keys[i]), prefix + purpose)
        return generator if witness is None else witness.drew(first + i, purpose, generator)

    samples = [dataset[int(i)] for i in ids]
    if witness is not None:
        for i, sample in enumerate(samples):
            witness.sample(first + i, keys[i], sample)
    return objective.collate(samples, draw, training)


def validation_batches(objective, dataset, seed: int, samples: int, micro_size: int, layout: Layout = Layout()):
    """This rank's batches of `samples` held-out samples: of every bucket the first ones, in number its share.

    A batch holds one bucket; the last of each may be smaller.
    """
    rank, world = layout.data_index, layout.data_parallel
    for own, count in zip(members_of(dataset), validation_mix(dataset, samples)):
        mine = own[count * rank // world:count * (rank + 1) // world].tolist()
        for start in range(0, len(mine), micro_size):
            ids = mine[start:start + micro_size]
            yield collate(objective, dataset, ids, ids, seed, 0, training=False)


def validation_mix(dataset, samples: int) -> tuple[int, ...]:
    """How many held-out samples of each bucket a validation on `samples` of them takes: order.mix."""
    return order.mix(samples, [len(own) for own in members_of(dataset)])
