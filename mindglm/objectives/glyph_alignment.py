"""Training of a small glyph encoder from nothing, for the nano model only (the released encoder is a frozen ByT5).

The DiT gives glyph tokens no position, so all it can know of the letters' order is what each byte's own feature says.
Random words are drawn; from the feature of every byte (and of the end id) one linear map must give the picture of its
character, its place counted from the left, and its place counted from the right. The map is thrown away.

loss of a token = PICTURE_WEIGHT * mean square pixel error + cross entropy of the two places.

Shapes: B words, T = max_bytes + 2 ids (a possible pad in front, the bytes, the end id), P pixels of a picture,
L = max_bytes + 1 places.
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
PICTURE_WEIGHT = 10.0
"""Brings the mean square pixel error (about 0.1 at the start) beside the cross entropies (about 2.5)."""


class Network(nn.Cell):
    """Loss of a batch of words. `model` keeps its own parameter names; the linear map is for training only."""

    def __init__(self, model: GlyphEncoder, pixels: int, places: int):
        super().__init__(auto_prefix=False)
        self.model, self.pixels, self.places = model, pixels, places
        width, outputs = model.config.d_model, pixels + 2 * places
        self.alignment_weight = ops.param((outputs, width), ("normal", 0.1 * width**-0.5))
        self.alignment_bias = ops.param((outputs,))

    def predict(self, ids_BT, mask_BT):
        """What the features tell: pictures (B, T, P), logits of the places from the left and the right (B, T, L)."""
        y = ops.linear(self.model(ids_BT, mask_BT), self.alignment_weight, self.alignment_bias)
        return mint.split(y, (self.pixels, self.places, self.places), -1)

    def construct(self, ids_BT, mask_BT, pictures_BTP, left_BT, right_BT):
        """(loss_sum, weight_sum), float32 scalars: summed over the tokens that have a place, and how many there are."""
        pictures, left, right = self.predict(ids_BT, mask_BT)
        counts_BT = mint.where(left_BT >= 0, Tensor(1.0), Tensor(0.0))
        error_BTP = pictures - pictures_BTP
        picture_loss = (mint.mean(error_BTP * error_BTP, -1) * counts_BT).sum()
        place_loss = (ops.token_nll(left.reshape(-1, self.places), left_BT.reshape(-1)).sum()
                      + ops.token_nll(right.reshape(-1, self.places), right_BT.reshape(-1)).sum())
        return PICTURE_WEIGHT * picture_loss + place_loss, counts_BT.sum()


class GlyphAlignment:
    """Objective `glyph_alignment`: `network`, `model`, and what the trainer asks of them."""

    def __init__(self, model_config: GlyphConfig, options, seed: int):
        """`options` has max_bytes and bitmap_size (pixels a side); weights are drawn from `seed`."""
        self.config, self.options = model_config, options
        self.model = GlyphEncoder(model_config)
        self.network = Network(self.model, options.bitmap_size**2, options.max_bytes + 1)
        ops.init_parameters(self.network, seed)

    def collate(self, samples: list[dict], draw, training: bool) -> tuple[np.ndarray, ...]:
        """One random word a sample: ids (B, T) int32, mask (B, T) bool, pictures (B, T, P) float32, places from the
        left and from the right (B, T) int32, -1 on pads.

        `samples` only say how many; the words come from draw(i, "word"), in validation too. The end id has an empty
        picture; counted from the right it is 0, so the last letter is 1.
        """
        shape = (len(samples), self.options.max_bytes + 2)
        side = self.options.bitmap_size
        ids, mask = np.full(shape, PAD_ID, np.int32), np.zeros(shape, bool)
        left, right = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        pictures = np.zeros((*shape, side * side), np.float32)
        for i in range(len(samples)):
            generator = draw(i, "word")
            word = random_word(generator, self.options.max_bytes)
            front = int(generator.random() < FRONT_PAD_SHARE)
            end = front + len(word)
            ids[i, front : end + 1] = byte_ids(word)
            mask[i, : end + 1] = True
            pictures[i, front:end] = [character_bitmap(c, side).ravel() for c in word]
            left[i, front : end + 1] = np.arange(len(word) + 1)
            right[i, front : end + 1] = np.arange(len(word) + 1)[::-1]
        return ids, mask, pictures, left, right

    def read_back(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the features tell of each token, for reports: pictures (B, T, P) float32, place from the left and place
        from the right (B, T)."""
        pictures, left, right = self.network.predict(Tensor(ids_BT), Tensor(mask_BT))
        return pictures.asnumpy(), left.asnumpy().argmax(-1), right.asnumpy().argmax(-1)

    def component_tensors(self) -> dict[str, Parameter]:
        """The `text_encoder` component under its released names."""
        return {parameter.name: parameter for parameter in self.model.get_parameters()}


def random_word(generator: np.random.Generator, max_bytes: int) -> str:
    """1 to max_bytes letters and digits, uniformly."""
    size = int(generator.integers(1, max_bytes + 1))
    return "".join(ALPHABET[k] for k in generator.integers(len(ALPHABET), size=size))


@functools.cache
def character_bitmap(character: str, side: int) -> np.ndarray:
    """A character in Pillow's own font, on a common baseline, centred: float32 (side, side) in [0, 1]."""
    picture = Image.new("L", (side, side))
    font = ImageFont.load_default(size=side)
    ImageDraw.Draw(picture).text((side / 2, 0.8 * side), character, fill=255, font=font, anchor="ms")
    return np.asarray(picture, np.float32) / 255
