"""Every random number of a run comes from here: one independent generator for each (seed, step, sample id, purpose)."""

import hashlib

import numpy as np


def rng(seed: int, step: int, sample_id: int, purpose: str) -> np.random.Generator:
    """A Philox generator keyed by all four arguments: the same draws on any rank, in any order, after any resume.

    purpose names the draw ("noise", "crop", "validation/noise"...), so that adding a draw never moves another.
    """
    text = f"{int(seed)}/{int(step)}/{int(sample_id)}/{purpose}"
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def initial_values(seed: int, name: str) -> np.random.Generator:
    """The generator that draws the start values of the parameter of that name: a function of (seed, name) only."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
