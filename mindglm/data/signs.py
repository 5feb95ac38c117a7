"""Signs: a coloured board with one short word in white letters, captioned `a red sign that says "OPEN"`.

The quotation marks make the word text to be rendered (reference section 3.1). Words are held out whole: a held-out
word stands on no training sign and in no training caption.
"""

import re
import string
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mindglm.data.drawing import COLOURS, fraction_of, keyed_rng
from mindglm.data.sign_words import sign_words

FONTS = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
GROUNDS = {
    "white": (250, 250, 250), "cream": (250, 242, 222), "light grey": (226, 228, 232),
    "light blue": (214, 230, 248), "light green": (220, 240, 218),
}
BOARDS = {name: COLOURS[name] for name in ("red", "green", "teal", "blue", "purple", "brown")} | {"black": (34, 34, 38)}
"""Dark enough for white letters."""
LETTER = (255, 255, 255)
LETTER_HEIGHTS = (0.2, 0.25)
BORDERS = (0.06, 0.12, 0.18)
"""Of the board, above and below the letters; like the letters' heights in parts of the picture's side."""
LONGEST_WORD = 4
LENGTH_SHARES = {1: 0.2, 2: 0.3, 3: 0.5}
"""Share of the signs with one character, two, and more. A model first learns from single characters what they look
like, then from two where they stand; from longer words alone it learns neither in minutes."""
_WORD = re.compile(r"\w+")


def words_in(text: str) -> set[str]:
    """Whole words of ASCII letters, upper case: no `nd` from `2nd`, no `ncipe` from an accented name."""
    return {word.upper() for word in _WORD.findall(text) if word.isascii() and word.isalpha()}


def choose_words(train_names, seed: int, held_out_words: int, held_out_numbers: int) -> tuple[list[str], list[str]]:
    """(training words, held-out words), disjoint, upper case: letters, digits, numbers to 99, words of 2 to 4 letters.

    train_names: names of the training drawings. Training words come from them and from the list of real sign words;
    held-out words come from that list and occur in no training name. Of the numbers from 10 on some are held out too;
    single characters never are: every letter has to be learned somewhere.
    """
    used = {word for name in train_names for word in words_in(name)}
    listed = sign_words(LONGEST_WORD)
    pool = sorted((w for w in listed if w not in used), key=lambda w: fraction_of(seed, "held-out word", w))
    numbers = sorted(map(str, range(10, 100)), key=lambda n: fraction_of(seed, "held-out number", n))
    held_out = sorted(pool[:held_out_words]) + sorted(numbers[:held_out_numbers])
    short = {w for w in used | set(listed) if 2 <= len(w) <= LONGEST_WORD}
    characters = set(string.ascii_uppercase + string.digits)
    return sorted((short | characters | set(numbers)) - set(held_out)), held_out


def plan_signs(train_words, held_out_words, count: int, held_out_count: int, seed: int) -> list[dict]:
    """`count` signs as captions.jsonl rows plus the fields `word`, `board` that draw_sign needs.

    Training signs keep LENGTH_SHARES; within a length, and among the held-out words, every word comes once before any
    comes twice. The board's colour follows from the file name alone, so a file that exists is right whatever the counts
    were when it was drawn.
    """
    rows, number, reached = [], count - held_out_count, 0.0
    for length, share in LENGTH_SHARES.items():
        words = [word for word in train_words if min(len(word), 3) == length]
        reached += share
        rows.extend(_in_turn(words, round(number * reached) - len(rows), "train", seed))
    return rows + _in_turn(held_out_words, held_out_count, "held_out", seed)


def _in_turn(words, number: int, split: str, seed: int) -> list[dict]:
    turns = [(turn, word) for turn in range(-(-number // len(words))) for word in words]
    turns.sort(key=lambda pair: (pair[0], fraction_of(seed, "order", str(pair[0]), pair[1])))
    return [_sign(word, turn, split, seed) for turn, word in turns[:number]]


def _sign(word: str, turn: int, split: str, seed: int) -> dict:
    name = f"sign-{word.lower()}-{turn}"
    board = list(BOARDS)[keyed_rng(seed, name).integers(len(BOARDS))]
    return {"file": f"images/{name}.png", "caption": f'a {board} sign that says "{word}"',
            "split": split, "kind": "sign", "word": word, "board": board}


def draw_sign(name: str, word: str, board: str, size: int, seed: int) -> Image.Image:
    """RGB image (size, size) of the sign; a pure function of its arguments.

    The board runs across the whole picture. Every character stands in the middle of a cell a quarter of the picture
    wide, and the row of cells in the middle of the picture: a small model then meets a character at few places, and
    learns in minutes what it looks like.
    """
    rng = keyed_rng(seed, "look", name)
    image = Image.new("RGB", (size, size), list(GROUNDS.values())[rng.integers(len(GROUNDS))])
    cell, height = size // LONGEST_WORD, round(size * rng.choice(LETTER_HEIGHTS))
    font, top = FONTS[rng.integers(len(FONTS))], (size - height) // 2
    edge = top - round(size * rng.choice(BORDERS))
    ImageDraw.Draw(image).rectangle((0, edge, size - 1, size - 1 - edge), fill=BOARDS[board])
    for place, character in enumerate(word):
        ink = _letter(font, character, round(cell * 0.9), height)
        left = (size - len(word) * cell) // 2 + place * cell + (cell - ink.width) // 2
        image.paste(LETTER, (left, top, left + ink.width, top + height), ink)
    return image


@lru_cache(maxsize=1024)
def _letter(font_name: str, character: str, width: int, height: int) -> Image.Image:
    """Ink of a character, grey (L): `height` pixels high, and squeezed into `width` where wider."""
    font = _font(font_name, 4 * height)
    box = font.getbbox(character)
    ink = Image.new("L", (box[2] - box[0], box[3] - box[1]), 0)
    ImageDraw.Draw(ink).text((-box[0], -box[1]), character, font=font, fill=255)
    natural = round(ink.width * height / ink.height)
    return ink.resize((min(width, natural), height), Image.Resampling.LANCZOS)


@lru_cache(maxsize=256)
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic layout gives the same letters whether or not Pillow was built with Raqm.
    return ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)
