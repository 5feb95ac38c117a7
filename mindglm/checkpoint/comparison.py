"""Two checkpoints, tensor by tensor: what only one has, what has another shape, and how far values are apart."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindglm.checkpoint.places import Entry, Place
from mindglm.checkpoint.tensors import to_float32
from mindglm.checkpoint.writer import OnBytes


@dataclass(frozen=True)
class Difference:
    """One tensor or file that is not the same."""

    name: str
    what: str
    error: float = math.nan
    """Largest absolute difference of values; nan where there is nothing to subtract."""


def differences(a: Place, b: Place, tolerance: float = 0.0,
                on_bytes: OnBytes = lambda count: None) -> Iterator[Difference]:
    """What differs, in the order of `a`. tolerance: absolute; values within it, and dtypes that carry them, pass."""
    labels = {label: label for label in a.groups if label in b.groups}
    if not labels and len(a.groups) == len(b.groups) == 1:
        labels = {next(iter(a.groups)): next(iter(b.groups))}
    yield from (Difference(label, f"only in {a.path}") for label in a.groups if label not in labels)
    yield from (Difference(label, f"only in {b.path}") for label in b.groups if label not in labels.values())
    for label, other in labels.items():
        mine, theirs = a.groups[label], b.groups[other]
        for name, entry in mine.items():
            full = f"{label}: {name}"
            if name not in theirs:
                yield Difference(full, f"only in {a.path}")
            elif (found := _compare(full, entry, theirs[name], tolerance, on_bytes)) is not None:
                yield found
        yield from (Difference(f"{label}: {name}", f"only in {b.path}") for name in theirs if name not in mine)
    yield from _files(a, b)


def _files(a: Place, b: Place) -> Iterator[Difference]:
    """Further files of two model folders."""
    if not (a.others and b.others):
        return
    for path in sorted({*a.others, *b.others}):
        if path not in a.others or path not in b.others:
            yield Difference(path, f"only in {(a if path in a.others else b).path}")
        elif (a.path / path).read_bytes() != (b.path / path).read_bytes():
            yield Difference(path, "other content")


def _compare(name: str, a: Entry, b: Entry, tolerance: float, on_bytes: OnBytes) -> Difference | None:
    if a.shape != b.shape:
        return Difference(name, f"shapes {list(a.shape)} and {list(b.shape)}")
    if a.file is None or b.file is None:
        return None if a.code == b.code else Difference(name, f"dtypes {a.code} and {b.code}")
    worst, largest, count, first, at = 0.0, 0.0, 0, None, 0
    for x, y in _pieces(name, a, b):
        on_bytes(x.nbytes)
        if a.code != b.code or x.tobytes() != y.tobytes():
            error = _errors(x, y)
            apart = np.flatnonzero(error > tolerance)
            if apart.size:
                first = at + int(apart[0]) if first is None else first
                count = count + apart.size
            worst = max(worst, float(error.max(initial=0)))
            largest = max(largest, float(np.abs(_values(x)).max(initial=0)))
        at = at + x.size
    codes = "" if a.code == b.code else f", dtypes {a.code} and {b.code}"
    if count:
        place = [int(i) for i in np.unravel_index(first, a.shape)]
        relative = worst / largest if largest else math.inf
        return Difference(name, f"max |a-b| {worst:.3g} (relative {relative:.3g}), {count} of {a.size} values differ, "
                                f"first at {place}{codes}", worst)
    if codes and tolerance == 0:
        return Difference(name, f"same values{codes}", 0.0)
    return None


def _pieces(name: str, a: Entry, b: Entry) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both tensors in pieces of the same number of values."""
    own = name.partition(": ")[2]
    step = 1 << 22
    for start in range(0, a.size, step):
        stop = min(start + step, a.size)
        yield tuple(np.concatenate(list(e.file.pieces(own, start, stop))) for e in (a, b))


def _values(x: np.ndarray) -> np.ndarray:
    return to_float32(x).astype(np.float64) if x.dtype == np.uint16 else x.astype(np.float64)


def _errors(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x - y|; 0 where both are nan or the same infinity, inf where one is."""
    x, y = _values(x), _values(y)
    with np.errstate(invalid="ignore"):
        error = np.abs(x - y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def first(found: Iterator[Difference], limit: int) -> tuple[list[Difference], int, float]:
    """(the first `limit`, how many in all, the largest error)."""
    listed = list(itertools.islice(found, limit))
    count, worst = len(listed), max((d.error for d in listed if not math.isnan(d.error)), default=0.0)
    for difference in found:
        count += 1
        worst = worst if math.isnan(difference.error) else max(worst, difference.error)
    return listed, count, worst
