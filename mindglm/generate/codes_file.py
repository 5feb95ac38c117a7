"""Image codes of pictures as a JSON file: what `mindglm generate --save-prior-codes` writes and `--prior-codes` reads.

    {"format": "mindglm image codes", "version": 1, "num_codes": 16384,
     "pictures": [{"prompt": "a cat", "codes": [[17, 4, ...], ...]}, ...]}

A row of codes is a row of 32-pixel squares of the picture; pictures of one prompt stand beside each other.
"""

import json
import pathlib

import numpy as np

from mindglm.errors import UserError
from mindglm.models.ar_generator.processor import CODE_PIXELS

FORMAT, VERSION = "mindglm image codes", 1


def write(path: pathlib.Path, codes_Bhw: np.ndarray, prompts: list[str], num_codes: int) -> None:
    """Write the codes of every picture, `prompts` one a picture; whole or not at all."""
    pictures = [{"prompt": prompt, "codes": grid.tolist()} for prompt, grid in zip(prompts, codes_Bhw, strict=True)]
    text = json.dumps({"format": FORMAT, "version": VERSION, "num_codes": num_codes, "pictures": pictures},
                      ensure_ascii=False)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: pathlib.Path, num_codes: int) -> np.ndarray:
    """int32 (pictures, rows, columns). UserError for a file that is damaged, or made for another model."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--prior-codes {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"--prior-codes {path} is not JSON: {error}. Expected a file that --save-prior-codes "
                        "wrote.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise UserError(f"--prior-codes {path}: expected a file that --save-prior-codes wrote (\"format\": "
                        f"\"{FORMAT}\", \"version\": {VERSION}).")
    if content.get("num_codes") != num_codes:
        raise UserError(f"--prior-codes {path} holds codes of a model with {content.get('num_codes')} codes, this "
                        f"model has {num_codes}. Codes mean nothing to another model: draw them with this one.")
    pictures = content.get("pictures")
    if not isinstance(pictures, list) or not pictures:
        raise UserError(f"--prior-codes {path}: expected \"pictures\", a list of at least one picture's codes.")
    grids = [_grid(picture, number, num_codes, path) for number, picture in enumerate(pictures, 1)]
    sizes = sorted({grid.shape for grid in grids})
    if len(sizes) > 1:
        raise UserError(f"--prior-codes {path} holds grids of different sizes, {sizes[0]} and {sizes[1]} (rows, "
                        "columns); expected one size. Draw them in calls of their own.")
    return np.stack(grids)


def _grid(picture, number: int, num_codes: int, path) -> np.ndarray:
    """Codes of one picture, int32 (rows, columns), checked one by one."""
    rows = picture.get("codes") if isinstance(picture, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise UserError(f"--prior-codes {path}, picture {number}: expected \"codes\", a list of rows.")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(f"--prior-codes {path}, picture {number}: rows of {min(lengths)} to {max(lengths)} codes; "
                        "expected rows of one length, at least 1.")
    for r, row in enumerate(rows, 1):
        for c, code in enumerate(row, 1):
            if type(code) is not int or not 0 <= code < num_codes:
                raise UserError(f"--prior-codes {path}, picture {number}, row {r}, column {c}: {code!r} is no code; "
                                f"expected whole numbers from 0 to {num_codes - 1}.")
    return np.array(rows, np.int32)


def picture_size(codes_Bhw: np.ndarray) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that such codes make."""
    return CODE_PIXELS * codes_Bhw.shape[1], CODE_PIXELS * codes_Bhw.shape[2]


def fit(codes_Bhw: np.ndarray, pictures: int, prompts: int, height: int, width: int, path) -> np.ndarray:
    """The codes of exactly `pictures` pictures of height x width; one grid a prompt serves all pictures of it."""
    own_height, own_width = picture_size(codes_Bhw)
    if (own_height, own_width) != (height, width):
        raise UserError(f"--prior-codes {path} holds codes for pictures of height {own_height} and width {own_width}; "
                        f"asked for are {height} and {width}. Leave --height and --width out, or draw codes of this "
                        "size.")
    if len(codes_Bhw) == pictures:
        return codes_Bhw
    if len(codes_Bhw) == prompts:
        return np.repeat(codes_Bhw, pictures // prompts, 0)
    found = "1 picture" if len(codes_Bhw) == 1 else f"{len(codes_Bhw)} pictures"
    raise UserError(f"--prior-codes {path} holds the codes of {found}; expected {prompts} (one a prompt)"
                    f"{'' if pictures == prompts else f' or {pictures} (one a picture)'}.")
