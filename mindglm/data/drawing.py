"""What the drawings and the signs share: named colours, random numbers keyed by names, atomic files."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (248, 216, 72),
    "green": (76, 168, 88),
    "teal": (38, 166, 164),
    "blue": (66, 114, 214),
    "purple": (140, 86, 188),
    "pink": (244, 158, 190),
    "brown": (150, 102, 66),
    "grey": (158, 162, 168),
}
"""The plain named colours of grounds and signs (sRGB)."""


def keyed_rng(seed: int, *keys: str) -> np.random.Generator:
    """A NumPy generator that is a pure function of `seed` and `keys`, whatever was drawn before it."""
    digest = hashlib.sha256("\x00".join((str(seed), *keys)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def fraction_of(seed: int, *keys: str) -> float:
    """A number in [0, 1) fixed by `seed` and `keys`; used to rank and to split."""
    digest = hashlib.sha256("\x00".join((str(seed), *keys)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: a reader never sees half of it."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staging.write_bytes(content)
    os.replace(staging, path)


def remove_staging(folder: Path, stem: str) -> None:
    """Remove what `write_bytes` of files named `stem`... left behind when a process was killed."""
    for path in folder.glob(f".{stem}*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value, indent: int | None = None) -> None:
    """`write_bytes` of a JSON value."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode())


def write_jsonl(path: Path, rows) -> None:
    """`write_bytes` of one JSON value a line."""
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
