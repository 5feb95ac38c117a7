"""How a tensor of ours and a tensor of another checkpoint correspond: what the name maps of the models are made of.

A name map is a list of `Pair`s, one a tensor. It is read in both directions: `pair.rows.to_ours` makes our tensor of
theirs, `to_theirs` gives theirs back. NumPy only: conversion needs no framework.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class SameRows:
    """Both hold the same values in the same order."""

    def their_shape(self, ours: Shape) -> Shape:
        return ours

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        return theirs

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours


@dataclass(frozen=True)
class ShiftedRows:
    """Their `count` rows are our rows from `start` on; our other rows are new."""

    start: int
    count: int

    def their_shape(self, ours: Shape) -> Shape:
        return (self.count, *ours[1:])

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours[self.start:self.start + self.count]


@dataclass(frozen=True)
class HalfSplitRows:
    """Rows of q or k, weight or bias: they rotate neighbours (2j, 2j + 1), we rotate (j, j + rotary_dim / 2).

    In every head our row j < rotary_dim / 2 is their row 2j, our row rotary_dim / 2 + j their row 2j + 1; the rows
    behind rotary_dim do not rotate and stay.
    """

    head_dim: int
    rotary_dim: int

    def their_shape(self, ours: Shape) -> Shape:
        return ours

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        return self._take(theirs, self._order())

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return self._take(ours, np.argsort(self._order()))

    def _order(self) -> np.ndarray:
        rotating = np.arange(self.rotary_dim)
        return np.concatenate([rotating[0::2], rotating[1::2], np.arange(self.rotary_dim, self.head_dim)])

    def _take(self, array: np.ndarray, order: np.ndarray) -> np.ndarray:
        heads = array.reshape(-1, self.head_dim, *array.shape[1:])
        return heads[:, order].reshape(array.shape)


@dataclass(frozen=True)
class Pair:
    """One tensor: its name and shape here, its name there, and how the rows correspond."""

    ours: str
    theirs: str
    shape: Shape
    """Of our tensor."""
    rows: SameRows | ShiftedRows | HalfSplitRows = SameRows()

    @property
    def their_shape(self) -> Shape:
        return self.rows.their_shape(self.shape)

    @property
    def identical(self) -> bool:
        """Same name and same values: the bytes can be copied as they are."""
        return self.ours == self.theirs and self.rows == SameRows()


def same_names(tensors: Mapping[str, Shape]) -> list[Pair]:
    """The map of a checkpoint that uses our names: the released one, by construction of the Cells."""
    return [Pair(name, name, tuple(shape)) for name, shape in tensors.items()]
