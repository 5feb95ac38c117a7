"""What a check of a machine found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    """What was looked at."""
    level: Level
    """fail: a run cannot work so; warn: it may."""
    text: str
    do: str = ""
    """What to do about it; empty for ok."""


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warn(check: str, text: str, do: str) -> Finding:
    return Finding(check, "warn", text, do)


def fail(check: str, text: str, do: str) -> Finding:
    return Finding(check, "fail", text, do)
