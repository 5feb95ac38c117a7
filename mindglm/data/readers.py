"""Raw samples: a folder of images and a JSONL file of captions. Nothing is dropped silently.

Each line of the captions file is {"file": path, "caption": text} with an optional "split": "train" | "held_out".
Paths are relative to the image folder, or to the captions file's own folder. Every file or line that cannot be used
becomes a `Refusal` with its reason.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mindglm.errors import UserError
from mindglm.recipe.sizes import MAX_ASPECT, Size

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
SPLITS = ("train", "held_out")
MAX_ENLARGEMENT = 2.0
CROP_SLACK = 0.05
"""So much more of a picture may be cut away for the sake of a bucket whose resolution is nearer to the picture's."""


@dataclass(frozen=True)
class Candidate:
    """One caption line whose image file exists; the image has not been opened yet."""

    id: str
    """The `file` of the line."""
    path: Path
    caption: str
    split: str | None
    """None: the line does not say."""


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be used. `reason` counts, `detail` explains."""

    file: str
    reason: str
    detail: str = ""

    def to_json(self) -> dict:
        return {"file": self.file, "reason": self.reason, "detail": self.detail}


class RefusedImage(Exception):
    """Raised by `load_image`; becomes a Refusal."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_candidates(images, captions=None) -> tuple[list[Candidate], list[Refusal]]:
    """(candidates in the order of the captions file, refusals found without opening an image).

    captions: the JSONL file; None means `captions.jsonl` in the image folder. Raises UserError when the folder or the
    captions file is missing or holds no caption at all.
    """
    images = Path(images)
    if not images.is_dir():
        raise UserError(f"images: {images} is not a folder; give the folder that holds the pictures")
    captions = Path(captions) if captions else images / "captions.jsonl"
    if not captions.is_file():
        raise UserError(f'captions: {captions} is not a file; expected JSONL, a line a picture: '
                        '{"file": "a.png", "caption": "a cat"}')
    candidates, refusals, first_line = [], [], {}
    try:
        lines = captions.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"captions: {captions} is not UTF-8 text ({error.reason} at byte {error.start}); "
                        "save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _read_line(line, f"{captions.name}:{number}", images, captions.parent)
        if isinstance(found, Candidate):
            path = found.path.resolve()
            if path in first_line:
                found = Refusal(found.id, "listed twice", f"lines {first_line[path]} and {number} of {captions.name}")
            else:
                first_line[path] = number
        (candidates if isinstance(found, Candidate) else refusals).append(found)
    if not candidates and not refusals:
        raise UserError(f"captions: {captions} is empty; expected a line a picture")
    refusals.extend(_without_caption(images, set(first_line), refusals))
    return candidates, refusals


def _read_line(line: str, place: str, images: Path, beside: Path) -> Candidate | Refusal:
    """One caption line as a candidate, or why not."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return Refusal(place, "caption line unreadable", f"not JSON: {error}")
    if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not row["file"]:
        return Refusal(place, "caption line unreadable", 'expected an object with a text field "file"')
    file, caption, split = row["file"], row.get("caption"), row.get("split")
    if not isinstance(caption, str) or not caption.strip():
        return Refusal(file, "empty caption", place)
    if split not in (None, *SPLITS):
        return Refusal(file, "caption line unreadable", f'{place}: "split" is {split!r}, expected train or held_out')
    for root in (images, beside):
        if (root / file).is_file():
            return Candidate(file, root / file, caption.strip(), split)
    return Refusal(file, "caption without image", f"{place}: no file {images / file}")


def _without_caption(images: Path, used: set[Path], refusals: list[Refusal]):
    """Image files of the folder that no line names (files that a refused line names are counted there)."""
    named = {(images / refusal.file).resolve() for refusal in refusals}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith("."):
            if path.resolve() not in used and path.resolve() not in named:
                yield Refusal(str(path.relative_to(images)), "image without caption")


def load_image(content: bytes) -> tuple[Image.Image, list[str]]:
    """(RGB image, notes on what was converted) from a file's bytes. Raises RefusedImage.

    Transparent pixels are laid over white; the EXIF orientation is applied.
    """
    try:
        image = Image.open(io.BytesIO(content))
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise RefusedImage("animated", f"{frames} frames")
        image.load()
        turned = ImageOps.exif_transpose(image)
    except RefusedImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds (SyntaxError, struct.error, OSError ...)
        raise RefusedImage("unreadable image", f"{type(error).__name__}: {error}") from error
    notes = ["turned by EXIF orientation"] if turned is not image and turned.size != image.size else []
    return _to_rgb(turned, notes), notes


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        notes.append("alpha onto white")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        white.alpha_composite(rgba)
        return white.convert("RGB")
    if image.mode.startswith("I;16"):
        notes.append("16 bits to 8")
        levels = (np.asarray(image).astype(np.float32) / 257.0).round().astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if image.mode in ("I", "F"):
        raise RefusedImage("unsupported mode", f"mode {image.mode} has no fixed range; save it with 8 bits a channel")
    notes.append(f"mode {image.mode} to RGB")
    return image.convert("RGB")


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """The number of the bucket that changes a picture of this size least; all are (height, width).

    Of the buckets that need no enlargement beyond MAX_ENLARGEMENT (where there is none, the one that needs the least:
    `fit` will refuse it), those that cut least of the picture away, within CROP_SLACK; of these the one whose
    resolution is nearest, an enlargement counting twice, for it invents pixels; then the one that cuts less.
    """
    scales = [max(bucket[0] / size[0], bucket[1] / size[1]) for bucket in buckets]
    cuts = [1 - bucket[0] * bucket[1] / (size[0] * size[1] * scale**2) for bucket, scale in zip(buckets, scales)]
    possible = [i for i, scale in enumerate(scales) if scale <= MAX_ENLARGEMENT] or [scales.index(min(scales))]
    least = min(cuts[i] for i in possible)
    changes = [abs(math.log(scale)) * (2 if scale > 1 else 1) for scale in scales]
    return min((i for i in possible if cuts[i] <= least + CROP_SLACK), key=lambda i: (changes[i], cuts[i], i))


def picture_size(path: Path) -> Size | None:
    """(height, width) as the picture is shown, without reading its pixels; None when it cannot be told."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            width, height = image.size
    except Exception:  # as in load_image, which will say what is wrong with it
        return None
    return (width, height) if turned else (height, width)


def fit(image: Image.Image, height: int, width: int) -> tuple[np.ndarray, tuple[int, int], bool]:
    """(pixels uint8 (height, width, 3), crop (top, left), whether the size changed): cover the bucket, crop the centre.

    Raises RefusedImage for pictures that are too thin or would have to be enlarged too much.
    """
    w, h = image.size
    if max(w, h) > MAX_ASPECT * min(w, h):
        raise RefusedImage("aspect over 4", f"{w}x{h} pixels")
    scale = max(height / h, width / w)
    if scale > MAX_ENLARGEMENT:
        raise RefusedImage("too small", f"{w}x{h} pixels would be enlarged {scale:.1f} times for {width}x{height}, "
                                        f"at most {MAX_ENLARGEMENT:g} is allowed")
    new_w, new_h = max(width, round(w * scale)), max(height, round(h * scale))
    changed = (w, h) != (width, height)
    if (new_w, new_h) != (w, h):
        image = image.resize((new_w, new_h), Image.Resampling.LANCZOS)
    top, left = (new_h - height) // 2, (new_w - width) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels, (top, left), changed
