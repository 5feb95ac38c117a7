"""What a step computed on: which samples lay at which places of the global batch, and what was drawn for them."""

import numpy as np

from mindglm.ledger.digest import Digest


class Witness:
    """Watches a rank make its part of a global batch.

    The digests of all ranks' witnesses add up to that of the whole batch, whatever the layout: a part is one sample at
    one place. `drawn` takes each generator as it is left after use, so it tells which numbers were asked for (its key:
    seed, step, sample, purpose) and how many.
    """

    def __init__(self):
        self._data = Digest()
        self._generators: list[tuple[int, str, np.random.Generator]] = []

    def sample(self, place: int, key: int, sample: dict) -> None:
        """A sample that was read: its place in the global batch, the id its draws are keyed by, and all it holds."""
        parts = [part for name in sorted(sample) for part in (name, sample[name])]
        self._data.add(int(place), int(key), *parts)

    def drew(self, place: int, purpose: str, generator: np.random.Generator) -> np.random.Generator:
        """A generator on its way to who draws from it; comes back as it is."""
        self._generators.append((place, purpose, generator))
        return generator

    @property
    def purposes(self) -> list[str]:
        """What was drawn for."""
        return sorted({purpose for _, purpose, _ in self._generators})

    @property
    def data(self) -> Digest:
        return self._data

    @property
    def draws(self) -> Digest:
        """To be asked for when all is drawn."""
        digest = Digest()
        for place, purpose, generator in self._generators:
            state = generator.bit_generator.state
            digest.add(int(place), purpose, state["state"]["key"], state["state"]["counter"], state["buffer_pos"],
                       state["has_uint32"])
        return digest
