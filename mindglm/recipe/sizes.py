"""Sizes of pictures as people write them, WIDTHxHEIGHT in pixels, and which of them the models can have."""

import re

CODE_PIXELS = 32
"""One large code stands for so many pixels each way."""

MAX_ASPECT = 4.0
"""Longest over shortest side that the image processor takes (reference section 2.5)."""

Size = tuple[int, int]
"""(height, width) in pixels."""

_TEXT = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def parse(text: str) -> Size | None:
    """`768x1344` -> (1344, 768): width first, as sizes of pictures are written. None for anything else."""
    match = _TEXT.fullmatch(text)
    return (int(match[2]), int(match[1])) if match else None


def name(size: Size) -> str:
    """The inverse of `parse`."""
    return f"{size[1]}x{size[0]}"


def fault(size: Size, table_side: int | None = None) -> str | None:
    """What is expected of a size that the models cannot have; None for one they can.

    table_side: of the vision tower (VisionConfig.table_side), whose learned position table has that many places a side;
    a larger grid of codes would fall between them. None: there is no tower to ask.
    """
    height, width = size
    if min(size) < CODE_PIXELS or height % CODE_PIXELS or width % CODE_PIXELS:
        near = tuple(max(CODE_PIXELS, round(side / CODE_PIXELS) * CODE_PIXELS) for side in size)
        return (f"positive multiples of {CODE_PIXELS}, because one code stands for {CODE_PIXELS} x {CODE_PIXELS} "
                f"pixels; try {name(near)}")
    if max(size) > MAX_ASPECT * min(size):
        return f"one side at most {MAX_ASPECT:g} times the other"
    if table_side is not None and max(size) > table_side * CODE_PIXELS:
        return (f"sides of at most {table_side * CODE_PIXELS}: the vision tower's position table has {table_side} "
                f"places a side, one for each code of {CODE_PIXELS} pixels")
    return None
