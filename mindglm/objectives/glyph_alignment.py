"""Training of a small glyph encoder from nothing, for the nano model only (the released encoder is a frozen ByT5).

The DiT gives glyph tokens no position, so all it can know of the letters' order is what each byte's own feature says.
Random words are drawn, and the feature of every byte (and of the end id) is prescribed: a code of the character, a code
of its place counted from the left and one of its place counted from the right, side by side and equally loud. A learned
read-out of the three would leave the loudness free; then places drown the characters, and a DiT of a few minutes'
training learns how long a word is but not how it is spelled.

loss of a token = mean square error of its feature.

Shapes: B words, T = max_bytes + 2 ids (a possible pad in front, the bytes, the end id), D feature width.
"""

import functools
import string

import numpy as np
from mindspore import Parameter, Tensor, mint, nn
from PIL import Image, ImageDraw, ImageFont

from mindglm import ops
from mindglm.models.glyph_encoder.model import GlyphEncoder
from mindglm.models.glyph_encoder.text import PAD_ID, byte_ids
from mindglm.recipe.models import GlyphConfig

ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits
FRONT_PAD_SHARE = 0.25
"""Share of words with a pad in front, as prompts with an even number of strings have it."""
END = len(ALPHABET)
"""Row of the end id in the table of character codes."""


class Network(nn.Cell):
    """Loss of a batch of words. `model` keeps its own parameter names."""

    def __init__(self, model: GlyphEncoder):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_BT, mask_BT, features_BTD, counted_BT):
        """(loss_sum, weight_sum), float32 scalars: summed over the tokens that count, and how many there are."""
        error_BTD = self.model(ids_BT, mask_BT) - features_BTD
        counts_BT = mint.where(counted_BT, Tensor(1.0), Tensor(0.0))
        return (mint.mean(error_BTD * error_BTD, -1) * counts_BT).sum(), counts_BT.sum()


class GlyphAlignment:
    """Objective `glyph_alignment`: `network`, `model`, and what the trainer asks of them."""

    def __init__(self, model_config: GlyphConfig, options, seed: int):
        """`options` has max_bytes and bitmap_size (pixels a side); weights are drawn from `seed`."""
        self.config, self.options = model_config, options
        self.codes = code_tables(model_config.d_model, options.max_bytes + 1, options.bitmap_size)
        self.model = GlyphEncoder(model_config)
        self.network = Network(self.model)
        ops.init_parameters(self.network, seed)

    def collate(self, samples: list[dict], draw, training: bool) -> tuple[np.ndarray, ...]:
        """One random word a sample: ids (B, T) int32, mask (B, T) bool, prescribed features (B, T, D) float32, and
        which tokens count (B, T) bool: all but pads.

        `samples` only say how many; the words come from draw(i, "word"), in validation too.
        """
        shape = (len(samples), self.options.max_bytes + 2)
        ids, mask = np.full(shape, PAD_ID, np.int32), np.zeros(shape, bool)
        features, counted = np.zeros((*shape, self.config.d_model), np.float32), np.zeros(shape, bool)
        for i in range(len(samples)):
            generator = draw(i, "word")
            word = random_word(generator, self.options.max_bytes)
            front = int(generator.random() < FRONT_PAD_SHARE)
            tokens = slice(front, front + len(word) + 1)
            ids[i, tokens] = byte_ids(word)
            mask[i, : tokens.stop] = True
            features[i, tokens] = self.features_of(word)
            counted[i, tokens] = True
        return ids, mask, features, counted

    def features_of(self, word: str) -> np.ndarray:
        """The prescribed features (len(word) + 1, D) float32. From the right the end id is 0."""
        characters, left, right = self.codes
        places = np.arange(len(word) + 1)
        rows = [ALPHABET.index(c) for c in word] + [END]
        return np.concatenate([characters[rows], left[places], right[places[::-1]]], axis=1)

    def read_back(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the features tell of each token, for reports, int (B, T) each: the row of the nearest character code
        (ALPHABET, then END), the place from the left and the place from the right."""
        features = self.model(Tensor(ids_BT), Tensor(mask_BT)).asnumpy()
        edges = np.cumsum([table.shape[1] for table in self.codes])[:-1]
        parts = np.split(features, edges, axis=-1)
        return tuple((part @ table.T).argmax(-1) for part, table in zip(parts, self.codes))

    def component_tensors(self) -> dict[str, Parameter]:
        """The `text_encoder` component under its released names."""
        return {parameter.name: parameter for parameter in self.model.get_parameters()}


def random_word(generator: np.random.Generator, max_bytes: int) -> str:
    """1 to max_bytes letters and digits, uniformly."""
    size = int(generator.integers(1, max_bytes + 1))
    return "".join(ALPHABET[k] for k in generator.integers(len(ALPHABET), size=size))


def code_tables(width: int, places: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of the characters (len(ALPHABET) + 1, width - 2 w), of places from the left and the right (places, w), with
    w = 3 width / 16; float32, every row of mean square 1.

    A character's code is half what its picture (`side` pixels) looks like, so that like letters have like codes, and
    half its own; the end id has no picture. The random parts are drawn from a fixed seed: they belong to the format.
    """
    generator = np.random.default_rng(0)
    place_width = 3 * width // 16
    pictures = np.stack([character_bitmap(c, side).ravel() for c in ALPHABET])
    pictures = pictures - pictures.mean(0)
    look = pictures @ generator.standard_normal((side * side, width - 2 * place_width))
    own = generator.standard_normal((END + 1, width - 2 * place_width))
    characters = _loud(own)
    characters[:END] = _loud(_loud(look) + characters[:END])
    return characters, *(_loud(generator.standard_normal((places, place_width))) for _ in range(2))


def _loud(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to mean square 1."""
    return (rows / np.sqrt(np.mean(rows * rows, axis=1, keepdims=True))).astype(np.float32)


@functools.cache
def character_bitmap(character: str, side: int) -> np.ndarray:
    """A character in Pillow's own font, on a common baseline, centred: float32 (side, side) in [0, 1]."""
    picture = Image.new("L", (side, side))
    font = ImageFont.load_default(size=side)
    ImageDraw.Draw(picture).text((side / 2, 0.8 * side), character, fill=255, font=font, anchor="ms")
    return np.asarray(picture, np.float32) / 255
