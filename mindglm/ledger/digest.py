"""Fingerprints that add up: each rank sums those of what it holds, and the sum over ranks is that of the whole.

A digest is 96 bits in 8 limbs of 12. A part's digest is a hash of the part with its name or place in it; the digest of
many parts is the sum of theirs, limb by limb modulo 4096. So it depends on neither the order of the parts nor on who
held them, and it passes through an int32 (or float32) all-reduce of up to 4096 ranks without loss. It guards against
accidents, not against somebody who looks for collisions.
"""

import hashlib

import numpy as np

LIMBS, BITS = 8, 12


class Digest:
    """The digest of the parts that were added to it."""

    def __init__(self, limbs: np.ndarray | None = None):
        """limbs: int array (LIMBS,) of a digest, or of the sum of several; None: nothing was added yet."""
        self.limbs = np.zeros(LIMBS, np.int64) if limbs is None else np.asarray(limbs, np.int64) % (1 << BITS)

    def add(self, *parts: object) -> None:
        """Add one part: texts, numbers, bytes and arrays that together name it and say what it holds."""
        state = hashlib.blake2b(digest_size=LIMBS * BITS // 8)
        for part in parts:
            head, data = _bytes(part)
            state.update(f"{len(head)} {len(data)} ".encode())
            state.update(head)
            state.update(data)
        number = int.from_bytes(state.digest(), "little")
        mine = [number >> BITS * i & (1 << BITS) - 1 for i in range(LIMBS)]
        self.limbs = (self.limbs + mine) % (1 << BITS)

    @property
    def hex(self) -> str:
        """24 digits."""
        return "".join(f"{limb:03x}" for limb in self.limbs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and np.array_equal(self.limbs, other.limbs)


def _bytes(part: object) -> tuple[bytes, bytes | memoryview]:
    """(what kind of part it is, its bytes)"""
    if isinstance(part, bytes):
        return b"bytes", part
    if isinstance(part, np.ndarray) and part.dtype != object:
        # The kind and the shape belong to it: the same bytes read otherwise are other data.
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        return f"{part.dtype.str}{part.shape}".encode(), memoryview(data)
    return b"", repr(part).encode()
