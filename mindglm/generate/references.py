"""Source images of image to image: each is read once, by the tokenizer, the VAE and the DiT (reference section 3.2).

Shapes: h32 w32 sides of an image's code grid, n samples, R reference tokens of a sample.
"""

import itertools
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindglm import ops  # noqa: F401  (sets up the device before the first computation)
from mindglm.models.ar_generator.processor import CODE_PIXELS
from mindglm.models.dit_decoder.conditions import upsample_codes
from mindglm.models.dit_decoder.model import Cache
from mindglm.models.dit_decoder.references import join_images, stack_samples
from mindglm.models.vae.pixels import preprocess


@dataclass(frozen=True, eq=False)
class Reference:
    """A source image as the models know it."""

    codes: np.ndarray
    """(h32, w32): what the AR generator reads in its prompt."""
    cache: Cache
    """Keys and values of its 4 h32 w32 tokens in every block of the DiT (n = 1)."""


class ReferenceReader:
    """Turns pictures into References; a picture that serves several prompts is read once."""

    def __init__(self, tokenizer, vae, dit, processor):
        self.tokenizer, self.vae, self.dit, self.processor = tokenizer, vae, dit, processor

    def read(self, images) -> list[list[Reference]]:
        """Lists of PIL pictures, one list a prompt -> their References. UserError for a size that cannot work."""
        known = {}
        for image in itertools.chain.from_iterable(images):
            if id(image) not in known:
                known[id(image)] = self._read(image)
        return [[known[id(image)] for image in own] for own in images]

    def _read(self, image) -> Reference:
        rows, columns = self.processor.check_source(image)
        patches, grid = self.processor.image_patches(image)
        assert grid == (rows, columns), f"{grid} patches, {rows} x {columns} codes expected"
        codes = self.tokenizer.quantize(self.tokenizer(Tensor(patches), rows, columns)).asnumpy()
        return Reference(codes.reshape(rows, columns), self._cache(image, codes.reshape(1, rows, columns)))

    def _cache(self, image, codes_1hw: np.ndarray) -> Cache:
        """The whole image, cut down to the 16 pixels of a DiT token, through the VAE and the DiT's write pass."""
        height, width = (CODE_PIXELS * side for side in codes_1hw.shape[1:])
        latents = self.vae.encode(Tensor(preprocess(image, height, width)[None]))
        size = np.array([[height, width]], np.float32)
        return self.dit.write(latents, Tensor(upsample_codes(codes_1hw)), Tensor(size))[1]


def batch_cache(references) -> tuple[Cache, np.ndarray | None]:
    """References of each picture of a batch -> one Cache (n divides the batch), and the mask bool (n, R) or None.

    Neighbours with the same references share a sample of the cache: it may take gigabytes.
    """
    runs = [(own, len(list(run))) for own, run in itertools.groupby(references)]
    if len({count for _, count in runs}) > 1:
        runs = [(own, 1) for own in references]
    cache, mask = stack_samples([join_images([image.cache for image in own]) for own, _ in runs])
    return ms.mutable(cache), mask
