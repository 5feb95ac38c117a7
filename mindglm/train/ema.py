"""Exponential moving average of the trained weights, kept flat on the host: each rank that of the masters it owns."""

from contextlib import contextmanager

import numpy as np


def decay_at(step: int, decay: float, warmup_steps: int) -> float:
    """The decay of update `step` (from 1): rises linearly from 0 to `decay` over `warmup_steps`, then stays."""
    return decay * min(1.0, (step - 1) / warmup_steps) if warmup_steps > 0 else decay


class Ema:
    """average = decay * average + (1 - decay) * weights, after every optimizer step."""

    def __init__(self, optimizer, decay: float, warmup_steps: int):
        """optimizer: where the master weights are. The average starts as they are now."""
        self._optimizer, self._decay, self._warmup = optimizer, decay, warmup_steps
        self.average = optimizer.masters().copy()

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1)."""
        share = np.float32(1.0 - decay_at(step, self._decay, self._warmup))
        difference = self._optimizer.masters() - self.average
        difference *= share
        self.average += difference

    @contextmanager
    def in_place(self):
        """Inside the block the model holds the average; afterwards its own weights again. Collective."""
        live = self._optimizer.masters().copy()
        self._optimizer.set_masters(self.average)
        try:
            yield
        finally:
            self._optimizer.set_masters(live)
