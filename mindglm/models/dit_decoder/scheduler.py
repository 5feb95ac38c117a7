"""Flow-matching Euler steps with the linear resolution shift (reference section 2.9). NumPy only.

The trap of this model: sigma is shifted by the resolution, the DiT's time input is not. At integer time t of 1..1000
the noise share is sigma = mu / (mu + 1000 / t - 1) and the DiT is given t - 1.
"""

import math

import numpy as np

from mindglm.recipe.models import SchedulerConfig


class Scheduler:
    """Tables of one image size and number of steps, and the Euler step along them."""

    def __init__(self, config: SchedulerConfig | None = None):
        self.config = config or SchedulerConfig()
        self.sigmas = None

    def mu(self, image_tokens: int) -> float:
        """The shift for so many DiT tokens (latent pixels / 4): 3.25 at 1024x1024 in the release."""
        config = self.config
        return config.max_shift * math.sqrt(image_tokens / config.base_image_seq_len) + config.base_shift

    def sigma(self, t, image_tokens: int) -> np.ndarray:
        """Noise share at integer times t of 1..num_train_timesteps, float32, same shape as t."""
        mu, share = np.float32(self.mu(image_tokens)), np.float32(1) / self._share(t)
        return mu / (mu + (share - np.float32(1)))

    def tables(self, height8: int, width8: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Times and noise shares of an inference run; also kept for `step`.

        Args:
            height8, width8: sides of the latent.
            steps: number of Euler steps n.

        Returns:
            timesteps (n,) float32, falling from 1000, as the public scheduler lists them: feed `model_time(t)` to the
            DiT; sigmas (n + 1,) float32, the last one 0.
        """
        total = self.config.num_train_timesteps
        timesteps = np.linspace(total, 1.0, steps + 1)[:-1].astype(np.int64).astype(np.float32)
        sigmas = self.sigma(timesteps, height8 * width8 // 4)
        self.sigmas = np.append(sigmas, np.float32(0))
        return timesteps, self.sigmas

    def step(self, x: np.ndarray, velocity: np.ndarray, i: int) -> np.ndarray:
        """From noise share sigmas[i] to sigmas[i + 1], in float32; call `tables` first."""
        assert self.sigmas is not None, "Scheduler.tables has not been called"
        return x.astype(np.float32) + (self.sigmas[i + 1] - self.sigmas[i]) * velocity.astype(np.float32)

    def _share(self, t) -> np.ndarray:
        return np.asarray(t, np.float32) / np.float32(self.config.num_train_timesteps)


def model_time(t):
    """What the DiT is told at integer time t: unshifted, counted from 0."""
    return t - 1
