"""Types of command-line values: each turns a text into a number or says what was expected."""

import argparse
import math

from mindglm.recipe import sizes


def count(text: str) -> int:
    return _whole(text, 1, "a whole number of at least 1")


def natural(text: str) -> int:
    return _whole(text, 0, "a whole number of at least 0")


def size(text: str) -> int:
    """Pixels: one large code covers 32 of them."""
    value = _whole(text, 1, "pixels, a multiple of 32")
    if value % 32:
        near = max(32, round(value / 32) * 32)
        raise argparse.ArgumentTypeError(f"given {value}, expected pixels, a multiple of 32, for instance {near}")
    return value


def bucket(text: str) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT."""
    found = sizes.parse(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"given {text!r}, expected WIDTHxHEIGHT in pixels, for instance 768x1344")
    return found


def share(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"given {text}, expected at least 0 and less than 1")
    return value


def weight(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"given {text}, expected at least 0")
    return value


def _whole(text: str, low: int, expected: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < low:
        raise argparse.ArgumentTypeError(f"given {text!r}, expected {expected}")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"given {text!r}, expected a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"given {text!r}, expected a finite number")
    return value
