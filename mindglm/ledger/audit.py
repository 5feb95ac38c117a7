"""Two ledgers side by side: the first step at which the runs part, and what parted first.

A step is made in this order, and so the first thing that differs is the cause: the samples that were read (data), the
numbers drawn for them (RNG), what was computed from both (numerics).
"""

import math
import os
import pathlib
from dataclasses import dataclass

from mindglm.errors import UserError
from mindglm.ledger import chain

TOLERANCE = 1e-5
"""Relative difference of losses that layouts of one run may have: promise 3."""
NUMBERS = ("lr", "loss", "grad_norm")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    steps: int
    """Steps that both runs did."""
    parted: int | None
    """The first step at which they part; None: they do not."""
    cause: str
    """data | RNG | numerics; "" where they do not part."""
    detail: str
    """What differs there."""
    rounded_from: int | None
    """The first step before they part at which a number or the weights are not the same bits; None: all are."""
    largest: float
    """Largest relative difference of a loss, gradient norm or learning rate before they part."""
    notes: tuple[str, ...]
    """What else differs and may explain it: the first lines, recipes changed on the way, lengths."""


def ledger_of(run: str | os.PathLike) -> pathlib.Path:
    """The ledger meant by `run`: the file, or that of a run's or a checkpoint's folder. UserError without one."""
    path = pathlib.Path(run)
    if path.is_dir():
        path = path / chain.NAME
    if not path.is_file():
        raise UserError(f"{run}: no ledger here; expected a run's output_dir, one of its checkpoint/iteration_ "
                        f"folders, or a {chain.NAME}")
    return path


def compare(a: list[dict], b: list[dict], tolerance: float = TOLERANCE) -> Comparison:
    """a, b: lines that chain.read gave. tolerance: relative difference of numbers that is rounding; 0: same bits."""
    ours, theirs = _steps(a), _steps(b)
    common = sorted(set(ours) & set(theirs))
    if not common:
        raise UserError(f"the ledgers have no step in common: {_span(ours)} and {_span(theirs)}")
    largest, rounded_from, parted, cause, detail = 0.0, None, None, "", ""
    for step in common:
        cause, detail, difference = _difference(ours[step], theirs[step], tolerance)
        if cause:
            parted = step
            break
        largest = max(largest, difference)
        if rounded_from is None and (difference > 0 or _other_weights(ours[step], theirs[step])):
            rounded_from = step
    notes = tuple(_notes(a, b, ours, theirs, parted))
    return Comparison(len(common), parted, cause, detail, rounded_from, largest, notes)


def _steps(lines: list[dict]) -> dict[int, dict]:
    """The lines of steps, by number. UserError for one that lacks something, though its chain is whole."""
    found = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            if not isinstance(line["step"], int):
                raise TypeError(f"step {line['step']!r}")
            if "data" in line:
                _ = line["draws"], [float(line[name]) for name in NUMBERS]
                found[line["step"]] = line
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"line {number} of a ledger is none that mindglm writes ({type(error).__name__}: {error})"
                            ) from error
    return found


def _difference(ours: dict, theirs: dict, tolerance: float) -> tuple[str, str, float]:
    """(cause, detail, largest relative difference) of one step; cause "" where it is the same step."""
    if ours["data"] != theirs["data"]:
        return "data", f"other samples were read (digests {ours['data']} and {theirs['data']})", 0.0
    if ours["draws"] != theirs["draws"]:
        return "RNG", ("the same samples were read, other random numbers drawn for them "
                       f"(digests {ours['draws']} and {theirs['draws']})"), 0.0
    largest, same = 0.0, "the same samples and random numbers gave another "
    for name in NUMBERS:
        difference = _relative(float(ours[name]), float(theirs[name]))
        if difference > tolerance:
            return "numerics", f"{same}{name}: {ours[name]} and {theirs[name]} (relative {difference:.2g})", 0.0
        largest = max(largest, difference)
    if tolerance == 0 and _other_weights(ours, theirs):
        return "numerics", f"{same}weights (digests {ours['weights']} and {theirs['weights']})", 0.0
    return "", "", largest


def _other_weights(ours: dict, theirs: dict) -> bool:
    return "weights" in ours and "weights" in theirs and ours["weights"] != theirs["weights"]


def _relative(a: float, b: float) -> float:
    if a == b or math.isnan(a) and math.isnan(b):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def _span(steps: dict[int, dict]) -> str:
    return f"steps {min(steps)} to {max(steps)}" if steps else "no step"


def _notes(a, b, ours, theirs, parted):
    for key in a[0].keys() | b[0].keys():
        if a[0].get(key) != b[0].get(key):
            yield f"the runs began with {key} {a[0].get(key)} and {b[0].get(key)}"
    for name, lines, others in (("A", a, b), ("B", b, a)):
        for line in lines:
            if "recipe" in line and line not in others and (parted is None or line["step"] < parted):
                yield f"{name} was resumed after step {line['step']} with another recipe: {'; '.join(line['recipe'])}"
    for line in (*a, *b):
        if line.get("replicas") == "differ" and (parted is None or line["step"] <= parted):
            yield f"step {line['step']}: data-parallel ranks of one run held different weights"
    if set(ours) != set(theirs):
        yield f"A has {_span(ours)}, B {_span(theirs)}"


def span(lines: list[dict]) -> str:
    """Which steps a ledger holds, in words."""
    return _span(_steps(lines))
