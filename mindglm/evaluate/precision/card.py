"""Runs the families that a fixture folder holds and says, tensor by tensor, how far mindglm is from the reference."""

import math
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from mindglm.errors import UserError
from mindglm.evaluate.precision.compare import FAILED, FORWARD, NOT_JUDGED, Row, judge
from mindglm.evaluate.precision.families import FAMILIES, Family
from mindglm.evaluate.precision.fixtures import Fixture, found_families
from mindglm.evaluate.precision.subject import Subject


@dataclass(frozen=True)
class Card:
    """All rows, in the order of the computation, and the names that no row compares."""

    rows: list[Row]
    not_compared: dict[str, str]
    """`family.name` -> why."""
    unknown_files: list[str]

    @property
    def first_departure(self) -> Row | None:
        return next((row for row in self.rows if row.bad), None)


def run(subject: Subject, folder, wanted: Iterable[str] = (), on_row: Callable[[Row], None] = lambda row: None) -> Card:
    """Computes every family of `folder` (or those `wanted`) and judges each tensor.

    An exception inside a family is a row "FAILED" (traceback on standard error), and the next family follows. Bad
    input raises UserError.
    """
    there, known = found_families(folder), [family.name for family in FAMILIES]
    lacking = [name for name in wanted if name not in there or name not in known]
    if lacking:
        raise UserError(f"family {', '.join(lacking)}: not in {folder}, or unknown; there are: "
                        f"{', '.join(name for name in known if name in there)}")
    chosen = [family for family in FAMILIES if family.name in (list(wanted) or there)]
    if not chosen:
        raise UserError(f"fixtures {folder}: no family that this card knows; it knows {', '.join(known)}")
    rows, not_compared = [], {}
    for family in chosen:
        fixture = Fixture(folder, family.name)
        for row in check_family(subject, family, fixture):
            rows.append(row)
            on_row(row)
        not_compared.update({f"{family.name}.{name}": reason for name, reason in left_out(family, fixture).items()})
    return Card(rows, not_compared, [name for name in there if name not in known])


def check_family(subject: Subject, family: Family, fixture: Fixture):
    """Rows of one family, as they are computed."""
    last = "the start"
    try:
        for found in family.check(subject, fixture):
            yield judge(family.name, found, fixture[found.name], subject.dtype)
            last = found.name
    except UserError:
        raise
    except Exception as error:  # whatever the framework raises on this device is a finding, not the end of the card
        traceback.print_exc(file=sys.stderr)
        reason = (str(error).strip().splitlines() or [""])[0]
        yield Row(family.name, f"(after {last})", FORWARD, math.inf, None, FAILED,
                  f"{type(error).__name__}: {reason}"[:200])


def left_out(family: Family, fixture: Fixture) -> dict[str, str]:
    """Names of a fixture that the finished check neither read nor compared, with the reason."""
    reasons = family.left_out
    return {name: next((reasons[start] for start in reasons if name.startswith(start)), "no check reads it")
            for name in fixture.unread()}


# ---- text and json ----

HEADER = f"{'tensor':58} {'error':>9} {'tolerance':>9}  verdict"


def line(row: Row) -> str:
    """One row of the table."""
    error = "inf" if math.isinf(row.error) else f"{row.error:.1e}"
    tolerance = "-" if row.tolerance is None else f"{row.tolerance:.0e}"
    name = f"{row.family}.{row.name}"
    return f"{name:58} {error:>9} {tolerance:>9}  {row.verdict}" + (f"  ({row.note})" if row.note else "")


def summary(card: Card) -> str:
    """The last lines of the card: what was left out, how many tensors, and the first departure."""
    lines = []
    reasons: dict[str, list[str]] = {}
    for name, reason in card.not_compared.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"not compared: {listed}: {reason}")
    if card.unknown_files:
        lines.append(f"not compared: files {', '.join(card.unknown_files)}: unknown families")
    bad = [row for row in card.rows if row.bad]
    families = len({row.family for row in card.rows})
    judged = sum(row.verdict != NOT_JUDGED for row in card.rows)
    first = card.first_departure
    if first is None:
        near = [row for row in card.rows if row.tolerance]
        worst = max(near, key=lambda row: row.error / row.tolerance, default=None)
        close = "" if worst is None else f"; closest to its tolerance: {worst.family}.{worst.name}"
        lines.append(f"{judged} tensors in {families} families: all within tolerance{close}")
    else:
        lines += [f"{len(bad)} of {judged} tensors in {families} families are over their tolerance",
                  f"FIRST DEPARTURE in the order of computation: {first.family}.{first.name}",
                  f"  error {first.error:.2e}, tolerance "
                  f"{'-' if first.tolerance is None else format(first.tolerance, '.0e')}  {first.note}".rstrip()]
    return "\n".join(lines)


def as_json(card: Card, **run_facts) -> dict:
    """The card as plain values; infinite errors become null."""
    def plain(row: Row) -> dict:
        return {**asdict(row), "error": row.error if math.isfinite(row.error) else None}

    first = card.first_departure
    return {**run_facts, "passed": first is None, "first_departure": None if first is None else plain(first),
            "rows": [plain(row) for row in card.rows], "not_compared": card.not_compared,
            "unknown_files": card.unknown_files}
