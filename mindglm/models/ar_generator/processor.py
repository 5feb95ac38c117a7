"""What goes into the AR generator: prompt ids, code grids, pixels (reference sections 2.5 and 3.1).

NumPy, Pillow and tokenizers only. Source: `processing_glm_image.py`, `image_processing_pil_glm_image.py` of
transformers 5.23.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from mindglm.errors import UserError

CODE_PIXELS = 32
"""A large code stands for 32 x 32 pixels of the target image: patch 16 of the half-size image."""

DIT_PIXELS = 16
"""A token of the DiT stands for 16 x 16 pixels: latent pixels of 8, two by two."""

PREVIEW_SIDE = 16
"""The preview grid keeps the target's aspect ratio and has about 16 x 16 codes."""

MAX_ASPECT = 4.0
"""Longest over shortest side that the image processor accepts."""

Grid = tuple[int, int]
"""(rows, columns) of codes."""


@dataclass(frozen=True)
class PixelSettings:
    """`processor/preprocessor_config.json`."""

    min_pixels: int
    max_pixels: int
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int
    rescale_factor: float


@dataclass(frozen=True)
class Processor:
    """Prompts and images -> arrays for the AR generator."""

    tokenizer: Tokenizer
    image_token: str
    image_start: str
    image_end: str
    grid_start: str
    grid_end: str
    pixels: PixelSettings

    @classmethod
    def from_pretrained(cls, repo_dir) -> "Processor":
        """Read `<repo_dir>/processor/` of the released layout. UserError when a file or a field is missing."""
        folder = pathlib.Path(repo_dir) / "processor"
        tokenizer_json = folder / "tokenizer.json"
        if not tokenizer_json.is_file():
            raise UserError(f"{tokenizer_json} does not exist; expected a folder in the released GLM-Image layout with "
                            "processor/{tokenizer.json, tokenizer_config.json, preprocessor_config.json}")
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise UserError(f"{tokenizer_json} cannot be read as a tokenizer: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        names = _read_json(folder / "tokenizer_config.json")
        settings = _read_json(folder / "preprocessor_config.json")
        try:
            return cls(
                tokenizer=tokenizer,
                image_token=_token(names, "image_token"), image_start=_token(names, "bos_token"),
                image_end=_token(names, "eos_token"), grid_start=_token(names, "grid_bos_token"),
                grid_end=_token(names, "grid_eos_token"),
                pixels=PixelSettings(
                    min_pixels=settings["min_pixels"], max_pixels=settings["max_pixels"],
                    patch_size=settings["patch_size"], mean=tuple(settings["image_mean"]),
                    std=tuple(settings["image_std"]), resample=settings["resample"],
                    rescale_factor=settings["rescale_factor"]),
            )
        except KeyError as error:
            raise UserError(f"{folder}: field {error} is missing from tokenizer_config.json or "
                            "preprocessor_config.json") from error

    def target_grids(self, height: int, width: int) -> tuple[Grid, Grid]:
        """See `target_grids`."""
        return target_grids(height, width)

    def check_size(self, height: int, width: int) -> None:
        """See `check_size`."""
        check_size(height, width)

    def prompt_text(self, text: str, height: int, width: int, source_grids: Sequence[Grid] = ()) -> str:
        """The string the model reads.

        Text to image: text, large and preview grid, image start. With source images: each as start, placeholders (one
        a code), end; then text, large grid, image start: no preview is written.
        """
        images = "".join(f"{self.image_start}{self.image_token * (rows * columns)}{self.image_end}"
                         for rows, columns in source_grids)
        large, preview = target_grids(height, width)
        wanted = (large,) if source_grids else (large, preview)
        grids = "".join(f"{self.grid_start}{rows} {columns}{self.grid_end}" for rows, columns in wanted)
        return f"{images}{text}{grids}{self.image_start}"

    def prompt_ids(self, text: str, height: int, width: int, source_grids: Sequence[Grid] = ()) -> list[int]:
        """Ids of `prompt_text`, placeholders included (`with_codes` fills them). UserError as `check_text`."""
        self.check_text(text)
        return self.tokenizer.encode(self.prompt_text(text, height, width, source_grids)).ids

    def check_text(self, text: str) -> None:
        """UserError when a prompt holds a token that marks a source image: its place and grid would be misread."""
        for token in (self.image_token, self.image_start, self.image_end):
            if token in text:
                raise UserError(f"the prompt holds {token}, which stands for a source image; remove it: {text!r}")

    def check_source(self, image) -> Grid:
        """See `check_source_size`, under this folder's limits. image: PIL, or an array (H, W, 3)."""
        width, height = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        return check_source_size(height, width, self.pixels)

    def image_patches(self, image) -> tuple[np.ndarray, Grid]:
        """A source image (PIL or uint8 (H, W, 3)) -> patches (rows * columns, C * p * p) float32 and its grid."""
        settings = self.pixels
        picture = _rgb(image)
        height, width = smart_resize(picture.height, picture.width, settings.patch_size, settings.min_pixels,
                                     settings.max_pixels)
        picture = picture.resize((width, height), resample=settings.resample)
        x = np.asarray(picture).astype(np.float32) * np.float32(settings.rescale_factor)
        x = (x - np.asarray(settings.mean, np.float32)) / np.asarray(settings.std, np.float32)
        p = settings.patch_size
        rows, columns = height // p, width // p
        patches = x.reshape(rows, p, columns, p, 3).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(patches).reshape(rows * columns, -1), (rows, columns)


def target_grids(height: int, width: int) -> tuple[Grid, Grid]:
    """(large, preview) code grids of a target size in pixels; sides are cut down to multiples of 32."""
    rows, columns = height // CODE_PIXELS, width // CODE_PIXELS
    ratio = rows / columns
    # Truncation, with both roots taken as the reference takes them: rounding decides the last code.
    return (rows, columns), (int(math.sqrt(ratio) * PREVIEW_SIDE), int(math.sqrt(1 / ratio) * PREVIEW_SIDE))


def check_size(height: int, width: int) -> None:
    """UserError unless the target size can be generated: multiples of 32, aspect ratio at most 4."""
    for name, value in (("height", height), ("width", width)):
        if value < CODE_PIXELS or value % CODE_PIXELS:
            nearest = max(CODE_PIXELS, round(value / CODE_PIXELS) * CODE_PIXELS)
            raise UserError(f"{name} {value}: expected a positive multiple of {CODE_PIXELS}; the nearest is {nearest}")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(f"height {height}, width {width}: expected one side at most {MAX_ASPECT:g} times the other")


def check_source_size(height: int, width: int, settings: PixelSettings) -> Grid:
    """Code grid of a source image. UserError unless both models see the same part of it.

    The AR generator reads `smart_resize`'s half of it in patches, the decoder its own latent: the latter needs exactly
    twice the rows and columns of the former. Sides that are multiples of 32 within the allowed range have it.
    """
    patch = settings.patch_size
    rows, columns = (side // patch for side in smart_resize(height, width, patch, settings.min_pixels,
                                                            settings.max_pixels))
    if (height // DIT_PIXELS, width // DIT_PIXELS) != (2 * rows, 2 * columns):
        low, high = (round(math.sqrt(pixels)) for pixels in (settings.min_pixels, settings.max_pixels))
        raise UserError(
            f"an image of {width} x {height} pixels: the AR generator would read it as {columns} x {rows} codes of "
            f"{CODE_PIXELS} pixels, the decoder as {width // DIT_PIXELS} x {height // DIT_PIXELS} tokens of "
            f"{DIT_PIXELS}, which is not twice as many; expected sides that are multiples of {CODE_PIXELS}, from {low} "
            f"to {high}. Resize it to {CODE_PIXELS * columns} x {CODE_PIXELS * rows}")
    return rows, columns


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size at which the tower sees a source image: half of it, after scaling into the allowed range of sides.

    Python's rounding to even is part of the definition. UserError for sides below `factor` or an aspect ratio over 4.
    """
    if min(height, width) < factor:
        raise UserError(f"an image of {width} x {height} pixels is too small; expected sides of at least {factor}")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise UserError(f"an image of {width} x {height} pixels is too long; expected one side at most "
                        f"{MAX_ASPECT:g} times the other: crop it")
    shortest, longest = round(math.sqrt(min_pixels)), round(math.sqrt(max_pixels))
    scale = 1.0
    if min(height, width) < shortest:
        scale = shortest / min(height, width)
    if max(height, width) * scale > longest:
        scale = longest / max(height, width)
    rows = max(factor, round(height // 2 * scale / factor) * factor)
    columns = max(factor, round(width // 2 * scale / factor) * factor)
    if max(rows, columns) > longest:
        shrink = max(rows, columns) / longest
        rows = max(factor, math.floor(rows / shrink / factor) * factor)
        columns = max(factor, math.floor(columns / shrink / factor) * factor)
    return rows, columns


def with_codes(ids: Sequence[int], codes: Sequence[np.ndarray], image_token_id: int) -> list[int]:
    """Prompt ids with the codes of the source images, in order, in place of the placeholders."""
    flat = np.concatenate([np.asarray(grid).reshape(-1) for grid in codes])
    filled = np.array(ids)
    places = filled == image_token_id
    assert places.sum() == len(flat), f"{places.sum()} placeholders for {len(flat)} codes"
    filled[places] = flat
    return filled.tolist()


def tokenizer_view(image, rows: int, columns: int, patch: int = 16) -> np.ndarray:
    """A target image as the tower sees it for a grid of rows x columns codes.

    image: PIL or uint8 (H, W, 3). Bicubic resize to (patch * rows, patch * columns).
    Returns float32 (3, patch * rows, patch * columns) in [-1, 1].
    """
    picture = _rgb(image).resize((patch * columns, patch * rows), resample=Image.Resampling.BICUBIC)
    return np.ascontiguousarray((np.asarray(picture).astype(np.float32) / 127.5 - 1.0).transpose(2, 0, 1))


def _rgb(image) -> Image.Image:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB")


def _read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as json: {error}") from error


def _token(names: dict, field: str) -> str:
    """A token string; older files write {"content": ...} or keep model-specific ones in extra_special_tokens."""
    extra = names.get("extra_special_tokens")
    value = names[field] if field in names or not isinstance(extra, dict) else extra[field]
    return value["content"] if isinstance(value, dict) else value
