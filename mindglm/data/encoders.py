"""The frozen encoders of a model folder: pictures and captions -> what AR generator and decoder are trained on.

Shapes: n samples, H W pixels, (h32, w32) large code grid, (ph, pw) preview code grid, (h8, w8) latent grid, Z latent
channels, T glyph bytes, D glyph width.
"""

import copy
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindglm import ops  # noqa: F401  (switches MindSpore's CPU launch mode before anything is computed)
from mindglm.checkpoint.released import component_config, component_header, read_component
from mindglm.errors import UserError
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.ar_generator.processor import Processor, tokenizer_view
from mindglm.models.ar_generator.vision import VisionTokenizer, patchify
from mindglm.models.glyph_encoder import config as glyph_config
from mindglm.models.glyph_encoder.model import GlyphEncoder
from mindglm.models.glyph_encoder.text import embed_prompts, glyph_strings
from mindglm.models.vae import config as vae_config
from mindglm.models.vae.model import VAE


class Encoders:
    """All encoders of one model folder for one size; `resized` gives those of another.

    Raises UserError when the folder or the size does not fit.

    compiled: the tower, for each of the two grids, and the VAE as one graph each: 1.3 to 3 times as fast, after some
    15 s of compiling. The glyph encoder has too little work to gain.
    """

    def __init__(self, model_dir, height: int, width: int, batch_size: int = 16, compiled: bool = False):
        self.batch_size = batch_size
        self.processor = Processor.from_pretrained(model_dir)
        self._set_size(height, width)
        vision = VisionTokenizer(ar_config.from_hf(component_config(model_dir, "vision_language_encoder")))
        self.vision = _load(vision, model_dir, "vision_language_encoder")
        self.vae = _load(VAE(vae_config.from_hf(component_config(model_dir, "vae"))), model_dir, "vae")
        glyph = GlyphEncoder(glyph_config.from_hf(component_config(model_dir, "text_encoder")))
        self.glyph = _load(glyph, model_dir, "text_encoder")
        self._patch = self.vision.config.vision_config.patch_size
        self._compiled = compiled
        self._codes = _codes_function(self.vision, compiled)
        self._latents = ms.jit(self.vae.encode) if compiled else self.vae.encode
        self._glyph_cache: dict[tuple[str, ...], np.ndarray] = {}
        self.empty_glyph = self._glyph_features("")

    def _set_size(self, height: int, width: int) -> None:
        self.processor.check_size(height, width)
        self.height, self.width = height, width
        self.large, self.preview = self.processor.target_grids(height, width)
        self.empty_prompt_ids = np.asarray(self.processor.prompt_ids("", height, width), np.int32)

    def resized(self, height: int, width: int) -> "Encoders":
        """The same encoders, with the same weights and caches, for another size."""
        other = copy.copy(self)
        other._set_size(height, width)
        return other

    def encode(self, pictures: list[np.ndarray], captions: list[str]) -> list[dict[str, np.ndarray]]:
        """uint8 (H, W, 3) pictures and their captions -> one dict a sample.

        prompt_ids int32 (S,), preview_codes int32 (ph, pw), large_codes int32 (h32, w32), latents float32 (Z, h8, w8),
        glyph float32 (T, D).
        """
        samples = []
        for start in range(0, len(pictures), self.batch_size):
            batch = pictures[start:start + self.batch_size]
            large, preview = self._grid_codes(batch, self.large), self._grid_codes(batch, self.preview)
            images = self._filled(np.stack(batch).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1.0)
            latents = self._latents(Tensor(np.ascontiguousarray(images))).asnumpy()
            for i, caption in enumerate(captions[start:start + self.batch_size]):
                samples.append({
                    "prompt_ids": np.asarray(self.processor.prompt_ids(caption, self.height, self.width), np.int32),
                    "preview_codes": preview[i].astype(np.int32),
                    "large_codes": large[i].astype(np.int32),
                    "latents": latents[i].astype(np.float32),
                    "glyph": self._glyph_features(caption),
                })
        return samples

    def _grid_codes(self, batch: list[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        """Codes int32 (n, rows, columns) of the pictures resized for this grid: the view the tokenizer trains on."""
        views = self._filled(np.stack([tokenizer_view(picture, *grid) for picture in batch]))
        codes = self._codes(Tensor(patchify(views, self._patch))).asnumpy()
        return codes[:len(batch)].reshape(len(batch), *grid)

    def _filled(self, arrays: np.ndarray) -> np.ndarray:
        """A graph is compiled for one shape: the last batch is filled up with copies, the results are cut."""
        missing = self.batch_size - len(arrays) if self._compiled else 0
        return np.concatenate([arrays, np.repeat(arrays[-1:], missing, axis=0)]) if missing else arrays

    def _glyph_features(self, caption: str) -> np.ndarray:
        """Features float32 (T, D) of the quoted strings of a caption; the same strings are encoded once."""
        strings = tuple(glyph_strings(caption))
        if strings not in self._glyph_cache:
            (features,) = embed_prompts(self.glyph, [caption])
            features = features.asnumpy() if hasattr(features, "asnumpy") else features
            self._glyph_cache[strings] = np.array(features, np.float32).reshape(-1, np.shape(features)[-1])
        return self._glyph_cache[strings]


def _codes_function(vision: VisionTokenizer, compiled: bool):
    """patches (n, h, w, P) -> codes (n, h * w)"""

    def codes(patches):
        return vision.quantize(vision.features(patches))

    return ms.jit(codes) if compiled else codes


def _load(cell, model_dir, component: str):
    """Set every Parameter of `cell` from the component's files; returns the cell, ready for inference."""
    parameters = {parameter.name: parameter for parameter in cell.get_parameters()}
    header = component_header(model_dir, component)
    wrong = [f"{name} is {header[name][1]}, expected {tuple(parameter.shape)}"
             for name, parameter in parameters.items()
             if name in header and tuple(header[name][1]) != tuple(parameter.shape)]
    if wrong:
        raise UserError(f"{Path(model_dir) / component}: {len(wrong)} tensors have another shape than config.json "
                        f"implies: {'; '.join(wrong[:3])}. Weights and config.json belong to different models.")
    for name, array in read_component(model_dir, component, names=parameters).items():
        parameters[name].set_data(Tensor(array))
    return cell.set_train(False)
