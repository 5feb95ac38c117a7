"""Small pictures for the tests of this room."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 64, width: int = 64) -> Image.Image:
    """A smooth coloured picture, another one for each seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def write_captions(folder: Path, rows) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def picture_folder(folder: Path, count: int = 6, held_out: int = 1) -> Path:
    """`count` pictures of 64 x 64 with captions, the last `held_out` of them held out."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        picture(i).save(folder / f"p{i}.png")
        caption = f'a sign that says "W{i}"' if i % 2 else f"picture number {i}"
        split = "held_out" if i >= count - held_out else "train"
        rows.append({"file": f"p{i}.png", "caption": caption, "split": split})
    write_captions(folder, rows)
    return folder
