"""Signs: a coloured board with one short word in big letters, captioned `a red sign that says "OPEN"`.

The quotation marks make the word text to be rendered (reference section 3.1). Words are held out whole: a held-out
word stands on no training sign and in no training caption, whatever its case.
"""

import re
import string
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mindglm.data.drawing import COLOURS, fraction_of, keyed_rng
from mindglm.data.sign_words import sign_words

FONTS = ("DejaVuSans-Bold", "DejaVuSans", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "DejaVuSerif")
GROUNDS = {
    "white": (250, 250, 250), "cream": (250, 242, 222), "light grey": (226, 228, 232),
    "light blue": (214, 230, 248), "light green": (220, 240, 218),
}
BOARDS = {**COLOURS, "black": (34, 34, 38)}
LOWER_CASE_SHARE = 0.15
LONGEST_WORD = 4
"""Letters: at 128 px a letter is then about two of the DiT's 16 px tokens wide, which a nano model can learn."""
LENGTH_SHARES = {1: 0.25, 2: 0.35, 3: 0.4}
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
    comes twice. Case and colour follow from the file name alone, so a file that exists is right whatever the counts
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
    rng = keyed_rng(seed, name)
    text = word.lower() if rng.random() < LOWER_CASE_SHARE else word
    board = list(BOARDS)[rng.integers(len(BOARDS))]
    article = "an" if board[0] in "aeiou" else "a"
    return {"file": f"images/{name}.png", "caption": f'{article} {board} sign that says "{text}"',
            "split": split, "kind": "sign", "word": text, "board": board}


def draw_sign(name: str, word: str, board: str, size: int, seed: int) -> Image.Image:
    """RGB image (size, size) of the sign; a pure function of its arguments.

    Letters fill most of the board's width and are stretched to about two fifths of the image's height, as painted
    signs do, so that a small model has enough pixels to learn their shapes from.
    """
    rng = keyed_rng(seed, "look", name)
    ground = list(GROUNDS.values())[rng.integers(len(GROUNDS))]
    image = Image.new("RGB", (size, size), ground)
    width = int(size * rng.uniform(0.88, 0.97))
    font, box = _fit(FONTS[rng.integers(len(FONTS))], word, width * rng.uniform(0.84, 0.92), size * 0.5)
    ink_width, ink_height = box[2] - box[0], max(box[3] - box[1], int(size * rng.uniform(0.36, 0.46)))
    height = int(ink_height + size * rng.uniform(0.16, 0.30))
    left, top = (size - width) // 2, (size - height) // 2 + int(rng.integers(-1, 2)) * (size - height) // 12
    radius = int(size * rng.choice([0.0, 0.06, 0.12]))
    ImageDraw.Draw(image).rounded_rectangle((left, top, left + width - 1, top + height - 1), radius, fill=BOARDS[board])
    ink = Image.new("L", (box[2] - box[0], box[3] - box[1]), 0)
    ImageDraw.Draw(ink).text((-box[0], -box[1]), word, font=font, fill=255)
    ink = ink.resize((ink_width, ink_height), Image.Resampling.BICUBIC)
    corner = left + (width - ink_width) // 2, top + (height - ink_height) // 2
    image.paste(letter_colour(board), (*corner, corner[0] + ink_width, corner[1] + ink_height), ink)
    return image


def letter_colour(board: str) -> tuple[int, int, int]:
    """White letters, or black ones on a light board."""
    red, green, blue = BOARDS[board]
    return (20, 20, 20) if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else (255, 255, 255)


def _fit(font_name: str, word: str, width: float, height: float):
    """The largest font whose ink of `word` fits into width x height pixels, and the ink's box."""
    probe = _font(font_name, 100).getbbox(word)
    points = int(100 * min(width / (probe[2] - probe[0]), height / (probe[3] - probe[1])))
    while True:
        font = _font(font_name, points)
        box = font.getbbox(word)
        if (box[2] - box[0] <= width and box[3] - box[1] <= height) or points <= 6:
            return font, box
        points -= 1


@lru_cache(maxsize=256)
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic layout gives the same letters whether or not Pillow was built with Raqm.
    return ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)
