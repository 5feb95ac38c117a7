"""One tensor beside its reference: the error, the tolerance it is judged by, the verdict."""

from dataclasses import dataclass, replace

import numpy as np

DTYPES = ("fp32", "fp16", "bf16")

FORWARD, GRADIENT, HOST, EXACT, CHOICE = "forward", "gradient", "host", "exact", "choice"
"""What a tensor is. forward: computed on the device. gradient: of a parameter. host: computed in NumPy, in float32
whatever the dtype of the run. exact: integers and texts that depend on no rounding. choice: integers that a
computation in floating point decides (codes, written ids)."""

TOLERANCES = {
    "fp32": {FORWARD: 1e-5, GRADIENT: 1e-4},
    "fp16": {FORWARD: 1e-2, GRADIENT: 3e-2},
    "bf16": {FORWARD: 8e-2, GRADIENT: 2e-1},
}
"""Largest relative error by dtype of the run. float32: two correct orders of summation differ by 1e-6. bfloat16: the
public classes' own bfloat16 run departs from their float32 run by 1-3 % on models of two layers, and errors grow with
depth and with the number of flow steps; float16 has 8 times finer steps."""

HOST_TOLERANCE = 1e-6

OK, OVER, FAILED, NOT_JUDGED = "ok", "OVER", "FAILED", "not judged"


@dataclass(frozen=True)
class Found:
    """A tensor that a family computed; `value` is an array, or a text or list where the reference holds one."""

    name: str
    value: object
    kind: str = FORWARD
    note: str = ""
    where: object = None
    """Boolean mask of the leading axes to compare; None: everything. Padding may hold anything."""
    tolerance: float | None = None
    """In place of that of the kind, where the quantity itself is less certain; `note` says why."""


@dataclass(frozen=True)
class Row:
    """A line of the card."""

    family: str
    name: str
    kind: str
    error: float
    tolerance: float | None
    verdict: str
    note: str = ""

    @property
    def bad(self) -> bool:
        return self.verdict in (OVER, FAILED)


def rel_error(ours, reference) -> float:
    """Largest absolute difference over the largest absolute reference value; infinite where a value is not finite.

    Infinite values at equal places are equal: a logit filter rules ids out by minus infinity.
    """
    ours = np.asarray(ours.asnumpy() if hasattr(ours, "asnumpy") else ours, np.float64)
    reference = np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"shape {ours.shape}, reference {reference.shape}"
    differ = ours != reference
    if not differ.any():
        return 0.0
    if not (np.isfinite(ours[differ]).all() and np.isfinite(reference[differ]).all()):
        return float("inf")
    scale = float(np.abs(reference[np.isfinite(reference)]).max())
    difference = float(np.abs(ours[differ] - reference[differ]).max())
    return difference / scale if scale > 0 else difference


def tolerance_of(kind: str, dtype: str) -> float | None:
    """The largest error that passes; None for what a run in half precision may decide otherwise."""
    if kind == HOST:
        return HOST_TOLERANCE
    if kind == EXACT or (kind == CHOICE and dtype == "fp32"):
        return 0.0
    return None if kind == CHOICE else TOLERANCES[dtype][kind]


def judge(family: str, found: Found, reference, dtype: str) -> Row:
    """The row of one tensor. Integers and texts count unequal elements; a shape that differs is over."""
    tolerance = tolerance_of(found.kind, dtype) if found.tolerance is None else found.tolerance
    row = Row(family, found.name, found.kind, float("inf"), tolerance, OVER, found.note)
    if found.kind in (EXACT, CHOICE) and not isinstance(reference, np.ndarray):
        error, note = float(found.value != reference), row.note
    else:
        ours, reference = np.asarray(found.value), np.asarray(reference)
        if ours.shape != reference.shape:
            return replace(row, note=f"shape {ours.shape}, in the reference {reference.shape}")
        if found.where is not None:
            ours, reference = ours[found.where], reference[found.where]
        if found.kind in (EXACT, CHOICE):
            unequal = int((ours != reference).sum())
            error, note = unequal / max(reference.size, 1), f"{unequal} of {reference.size} differ" if unequal else ""
            note = note or row.note
        else:
            error, note = rel_error(ours, reference), row.note
    if tolerance is None:
        return replace(row, error=error, verdict=NOT_JUDGED, note=note or "decided by rounding in this dtype")
    return replace(row, error=error, verdict=OK if error <= tolerance else OVER, note=note)
