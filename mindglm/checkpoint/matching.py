"""Every source tensor is used exactly once, every target tensor filled exactly once; or one message says why not."""

import difflib
from collections.abc import Collection, Mapping

from mindglm.errors import UserError

FLOATING = ("F64", "F32", "BF16", "F16")
"""Dtype codes that weights may have."""

_LISTED = 20
Shape = tuple[int, ...]


def faults(wanted: Mapping[str, Shape], found: Mapping[str, tuple[str, Shape]],
           optional: Collection[str] = ()) -> list[str]:
    """One line for each kind of disagreement; [] when the names, shapes and kinds of dtype agree.

    wanted: {name: shape}. found: {name: (dtype code, shape)}. optional: names that may be there and need not.
    """
    missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in found]
    lacking = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted and name not in optional]
    described = [name + _nearest(name, lacking, wanted) for name in unexpected[:_LISTED]] + unexpected[_LISTED:]
    shaped = [f"{name} is {list(found[name][1])}, expected {list(shape)}" for name, shape in wanted.items()
              if name in found and tuple(found[name][1]) != tuple(shape)]
    typed = [f"{name} is {code}, expected one of {', '.join(FLOATING)}" for name, (code, _) in found.items()
             if code not in FLOATING]
    kinds = (("missing", missing), ("unexpected", described), ("of another shape", shaped), ("of another dtype", typed))
    return [f"{len(lines)} {kind}: {_some(lines)}" for kind, lines in kinds if lines]


def _nearest(name: str, lacking: list[str], wanted: Mapping[str, Shape]) -> str:
    """The name that was probably meant: one that is missing if any is close, else any close one."""
    close = difflib.get_close_matches(name, lacking, 1) or difflib.get_close_matches(name, wanted, 1)
    return f" (nearest: {close[0]})" if close else " (nothing is near it)"


def _some(lines: list[str]) -> str:
    rest = len(lines) - _LISTED
    return "; ".join(lines[:_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def refuse(problems: Mapping[str, list[str]], cure: str) -> None:
    """UserError with all problems, place by place, unless there are none."""
    problems = {where: lines for where, lines in problems.items() if lines}
    if problems:
        text = "".join(f"\n  {where}: {line}" for where, lines in problems.items() for line in lines)
        raise UserError(f"names, shapes or files do not fit; nothing was written.{text}\n{cure}")
