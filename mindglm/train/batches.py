"""Which arrays a rank computes on at a step: a pure function of (seed, step), prepared one step ahead in a thread."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mindglm import order
from mindglm.errors import UserError
from mindglm.train.layout import Layout

VIRTUAL_SAMPLES = 2**20


class ProceduralDataset:
    """Stands for data that an objective draws itself: every sample is only its number."""

    def __len__(self) -> int:
        return VIRTUAL_SAMPLES

    def __getitem__(self, i: int) -> dict:
        return {"index": int(i), "id": str(i)}


class Batches:
    """The training batches of this rank.

    Each data-parallel rank takes its contiguous part of the global batch, in micro-batches of equal size; the stages of
    a pipeline take the same. Draws are keyed by (seed,
    step, sample id, purpose); a sample that a global batch holds twice gets other draws the second time.
    """

    def __init__(self, objective, dataset, seed: int, global_batch: int, accumulation: int, layout: Layout = Layout()):
        parts = layout.data_parallel * accumulation
        if global_batch % parts:
            raise UserError(f"runner_config.global_batch_size is {global_batch}, expected a multiple of {parts} = "
                            f"data_parallel {layout.data_parallel} x {accumulation} micro-batches a rank "
                            "(gradient_accumulation_steps x micro_batch_num)")
        self._objective, self._dataset, self._seed = objective, dataset, seed
        self._global, self.micro_size, self._accumulation = global_batch, global_batch // parts, accumulation
        self._first = layout.data_index * self.micro_size * accumulation
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead = None

    def make(self, step: int) -> list[tuple[np.ndarray, ...]]:
        """The micro-batches of optimizer step `step` (from 0)."""
        n = len(self._dataset)
        ids = order.batch_ids(self._seed, step, self._global, n)
        seen, keys = Counter(), []
        for sample in ids.tolist():
            keys.append(sample + n * seen[sample])
            seen[sample] += 1
        batches = []
        for i in range(self._accumulation):
            part = slice(self._first + i * self.micro_size, self._first + (i + 1) * self.micro_size)
            batches.append(collate(self._objective, self._dataset, ids[part], keys[part], self._seed, step, True))
        return batches

    def take(self, step: int, last: bool) -> list[tuple[np.ndarray, ...]]:
        """As `make`, begun while the step before was computed; `last`: no step follows."""
        future = self._ahead or self._thread.submit(self.make, step)
        batches = future.result()
        self._ahead = None if last else self._thread.submit(self.make, step + 1)
        return batches

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def collate(objective, dataset, ids, keys, seed: int, step: int, training: bool) -> tuple[np.ndarray, ...]:
    """The arrays of the samples `ids`, drawn under `keys`; validation draws are a stream apart and never change."""
    prefix, step = ("", step) if training else ("validation/", 0)

    def draw(i: int, purpose: str) -> np.random.Generator:
        return order.rng(seed, step, int(keys[i]), prefix + purpose)

    return objective.collate([dataset[int(i)] for i in ids], draw, training)


def validation_batches(objective, dataset, seed: int, samples: int, micro_size: int, layout: Layout = Layout()):
    """This rank's batches of the first `samples` held-out samples; the last one may be smaller."""
    count = min(samples, len(dataset))
    rank, world = layout.data_index, layout.data_parallel
    mine = list(range(count * rank // world, count * (rank + 1) // world))
    for start in range(0, len(mine), micro_size):
        ids = mine[start:start + micro_size]
        yield collate(objective, dataset, ids, ids, seed, 0, training=False)
