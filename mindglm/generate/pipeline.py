"""Text (and source images) to image, from a folder in the released layout (reference section 3).

Departures from the public pipeline, each undone by `hf_compatible=True`: ids that are no image code are forbidden
inside a grid; glyph padding in a batch is masked, so that a picture never depends on its neighbours. Every picture
of a prompt gets codes of its own. All random numbers are functions of (seed, prompt index, image index).
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor
from PIL import Image
from tqdm import tqdm

from mindglm import ops  # noqa: F401  (sets up the device before the first computation)
from mindglm.checkpoint.released import component_config, read_json
from mindglm.errors import UserError
from mindglm.generate.ar_sampler import ArSampler
from mindglm.generate.flow_sampler import FlowCondition, sample_latents
from mindglm.generate.loading import COMPONENTS, check_model_folder, load_component
from mindglm.generate.references import Reference, ReferenceReader, batch_cache
from mindglm.generate.sampling import SamplingConfig
from mindglm.models.ar_generator.config import from_hf as ar_config
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.ar_generator.processor import Processor, with_codes
from mindglm.models.ar_generator.vision import VisionTokenizer
from mindglm.models.dit_decoder.conditions import pad_glyphs, upsample_codes
from mindglm.models.dit_decoder.config import from_hf as dit_config
from mindglm.models.dit_decoder.config import scheduler_from_hf
from mindglm.models.dit_decoder.model import DiTDecoder
from mindglm.models.dit_decoder.scheduler import Scheduler
from mindglm.models.glyph_encoder.config import from_hf as glyph_config
from mindglm.models.glyph_encoder.model import GlyphEncoder
from mindglm.models.glyph_encoder.text import embed_prompts
from mindglm.models.vae.config import from_hf as vae_config
from mindglm.models.vae.model import VAE
from mindglm.models.vae.pixels import pixels_of
from mindglm.order import rng

GLYPH_PAD = 8
"""Glyph tokens are padded (and masked) to a multiple of this, so that a compiled DiT sees few shapes."""


class Pipeline:
    """The components of one model folder, and the way from prompts to pictures."""

    def __init__(self, ar, dit, vae, glyph_encoder, processor, scheduler, sampling: SamplingConfig,
                 compiled: bool = False, hf_compatible: bool = False, tokenizer=None):
        """compiled: run the repeated passes as graphs; each new shape costs some seconds first.

        tokenizer: the VisionTokenizer, needed for source images only.
        """
        self.ar, self.dit, self.vae, self.glyph_encoder = ar, dit, vae, glyph_encoder
        self.processor, self.scheduler, self.hf_compatible = processor, scheduler, hf_compatible
        self.ar_sampler = ArSampler(ar, sampling, compiled)
        self.reader = None if tokenizer is None else ReferenceReader(tokenizer, vae, dit, processor)
        self._empty_glyph = None

        def dit_pass(latents, glyph, prior, drop, time, size, crop, mask=None, references=None, reference_mask=None):
            return dit(latents, glyph, prior, drop, time, size, crop, mask, references, reference_mask)

        def vae_decode(latents):
            return vae.decode(latents)

        self.dit_pass = ms.jit(dit_pass) if compiled else dit_pass
        self.vae_decode = ms.jit(vae_decode) if compiled else vae_decode

    @classmethod
    def from_pretrained(cls, model_dir, compiled: bool = False, hf_compatible: bool = False,
                        with_images: bool = False) -> "Pipeline":
        """Loads every component; raises UserError when the folder is incomplete, foreign or inconsistent.

        with_images: also the image tokenizer, which source images need.
        """
        root = check_model_folder(model_dir, with_images=with_images)
        generator = ar_config(component_config(root, "vision_language_encoder"))
        built = {
            "vision_language_encoder": ArGenerator(generator),
            "transformer": DiTDecoder(dit_config(component_config(root, "transformer"))),
            "vae": VAE(vae_config(component_config(root, "vae"))),
            "text_encoder": GlyphEncoder(glyph_config(component_config(root, "text_encoder"))),
        }
        _check_agreement(root, *built.values())
        cells = [load_component(built[name], root, name).set_train(False) for name in COMPONENTS]
        tokenizer = None
        if with_images:
            tokenizer = load_component(VisionTokenizer(generator), root, "vision_language_encoder").set_train(False)
        scheduler = Scheduler(scheduler_from_hf(read_json(root / "scheduler" / "scheduler_config.json")))
        return cls(*cells, Processor.from_pretrained(root), scheduler, SamplingConfig.from_pretrained(root), compiled,
                   hf_compatible, tokenizer)

    def __call__(self, prompts, height: int, width: int, steps: int = 50, guidance_scale: float = 1.5, seed: int = 0,
                 num_images: int = 1, prior_codes=None, glyph_prompts=None, batch_size: int = 16,
                 decode_batch: int = 8, progress: bool = False, images=None, on_codes=None) -> list[Image.Image]:
        """Pictures of every prompt, the `num_images` of a prompt side by side.

        prior_codes: large codes int (len(prompts) * num_images, h32, w32) to decode instead of sampling them.
        glyph_prompts: prompts whose quoted strings are drawn, in place of `prompts`.
        images: source images (PIL): one list for all prompts, or a list of lists, one a prompt.
        on_codes: called with the sampled large codes, before the long way from them to pictures.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        keys = [(p, i) for p in range(len(prompts)) for i in range(num_images)]
        glyphs = self.glyph_features(prompts if glyph_prompts is None else glyph_prompts)
        references = self.read_images(images, len(prompts))
        if references is not None:
            references = [references[p] for p, _ in keys]
        if prior_codes is None:
            prior_codes = self.sample_codes([prompts[p] for p, _ in keys], height, width,
                                            [rng(seed, i, p, "generate/codes") for p, i in keys], batch_size, progress,
                                            references)
            if on_codes is not None:
                on_codes(prior_codes)
        prior_codes = np.asarray(prior_codes)
        noise = np.stack([self.noise(height, width, rng(seed, i, p, "generate/noise")) for p, i in keys])
        latents = self.sample_latents(noise, prior_codes, [glyphs[p] for p, _ in keys], height, width, steps,
                                      guidance_scale, batch_size, progress, references=references)
        return [Image.fromarray(pixels) for pixels in self.decode(latents, decode_batch)]

    def read_images(self, images, prompts: int) -> list[list[Reference]] | None:
        """Source images as `__call__` takes them -> References of each prompt; None when there are no images."""
        if not images:
            return None
        images = list(images) if isinstance(images[0], (list, tuple)) else [list(images)] * prompts
        if len(images) != prompts or not all(images):
            counts = ", ".join(str(len(own)) for own in images)
            raise UserError(f"source images for {len(images)} prompts ({counts} images); there are {prompts} prompts, "
                            "and each needs at least one image. Generate prompts without images in a call of their "
                            "own.")
        assert self.reader is not None, "this pipeline was built without the image tokenizer (with_images=True)"
        return self.reader.read(images)

    def noise(self, height: int, width: int, generator) -> np.ndarray:
        """Standard normal (C, H / 8, W / 8), float32."""
        factor = self.vae.config.spatial_factor
        return generator.standard_normal((self.vae.config.latent_channels, height // factor, width // factor),
                                         dtype=np.float32)

    def sample_codes(self, prompts, height: int, width: int, generators, batch_size: int = 16,
                     progress: bool = False, references=None) -> np.ndarray:
        """Large codes int32 (len(prompts), h32, w32) from the AR generator.

        The preview grid is drawn and dropped; with references (a list of Reference a prompt) none is drawn.
        """
        large, preview = self.processor.target_grids(height, width)
        grids = None
        if references is None:
            ids = [self.processor.prompt_ids(prompt, height, width) for prompt in prompts]
        else:
            preview, grids = None, [[image.codes.shape for image in own] for own in references]
            ids = [with_codes(self.processor.prompt_ids(prompt, height, width, own_grids),
                              [image.codes for image in own], self.ar.config.image_token_id)
                   for prompt, own_grids, own in zip(prompts, grids, references, strict=True)]
        chunks = _chunks(len(prompts), batch_size)
        total = (large[0] * large[1] + (0 if preview is None else preview[0] * preview[1])) * len(chunks)
        with tqdm(total=total, desc="image codes", unit="code", disable=not progress) as bar:
            parts = [self.ar_sampler.generate(ids[c], large, preview, generators[c], self.hf_compatible, bar.update,
                                              None if grids is None else grids[c])[1] for c in chunks]
        return np.concatenate(parts)

    def glyph_features(self, prompts) -> list[np.ndarray]:
        """Features (T, D) of the quoted strings of each prompt."""
        return embed_prompts(self.glyph_encoder, list(prompts))

    def conditions(self, large_codes, glyphs, drop=None, references=None) -> tuple[FlowCondition, FlowCondition]:
        """The pass with codes, glyphs and references, and the pass without: reference section 3.1 step 9.

        drop: bool (B,), pictures whose codes are withheld even in the first pass.
        """
        prior_BN = upsample_codes(np.asarray(large_codes))
        multiple = 1 if self.hf_compatible else GLYPH_PAD
        glyph_BTD, mask_BT = pad_glyphs(glyphs, multiple)
        if self._empty_glyph is None:
            self._empty_glyph = self.glyph_features([""])[0]
        empty_BTD = np.repeat(self._empty_glyph[None], len(prior_BN), 0)
        dropped = np.zeros(prior_BN.shape, bool)
        if drop is not None:
            dropped[np.asarray(drop, bool)] = True
        mask = None if self.hf_compatible else mask_BT
        cache = (None, None) if references is None else batch_cache(references)
        return (FlowCondition(glyph_BTD, mask, prior_BN, dropped, *cache),
                FlowCondition(empty_BTD, None, prior_BN, np.ones(prior_BN.shape, bool)))

    def sample_latents(self, noise, large_codes, glyphs, height: int, width: int, steps: int, guidance_scale: float,
                       batch_size: int = 16, progress: bool = False, drop=None, on_step=None,
                       references=None) -> np.ndarray:
        """Normalised latents float32 (B, C, H / 8, W / 8) for given noise, large codes and glyph features.

        references: a list of Reference a picture, or None.
        """
        chunks = _chunks(len(noise), batch_size)
        parts = []
        with tqdm(total=steps * len(chunks), desc="flow steps", unit="step", disable=not progress) as bar:
            def tick(i, latents):
                bar.update()
                if on_step is not None:
                    on_step(i, latents)

            for c in chunks:
                given, withheld = self.conditions(large_codes[c], glyphs[c], None if drop is None else drop[c],
                                                  None if references is None else references[c])
                parts.append(sample_latents(self.dit_pass, self.scheduler, noise[c], given, withheld, height, width,
                                            steps, guidance_scale, tick))
        return np.concatenate(parts)

    def decode(self, latents, batch_size: int = 8) -> np.ndarray:
        """Normalised latents -> pixels uint8 (B, H, W, 3)."""
        parts = [pixels_of(self.vae_decode(Tensor(latents[c])).asnumpy()) for c in _chunks(len(latents), batch_size)]
        return np.concatenate(parts)


def _chunks(count: int, size: int) -> list[slice]:
    """Slices of nearly equal length, none above `size`."""
    parts = max(1, math.ceil(count / size))
    edges = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:])]


def _check_agreement(root, ar: ArGenerator, dit: DiTDecoder, vae: VAE, glyph_encoder: GlyphEncoder) -> None:
    """Components of different models fit together only by chance: compare the numbers they share."""
    pairs = [("codes", "vision_language_encoder num_embeddings", ar.config.num_codes,
              "transformer prior_vq_quantizer_codebook_size", dit.config.prior_vq_quantizer_codebook_size),
             ("latent channels", "vae latent_channels", vae.config.latent_channels,
              "transformer in_channels", dit.config.in_channels),
             ("glyph width", "text_encoder d_model", glyph_encoder.config.d_model,
              "transformer text_embed_dim", dit.config.text_embed_dim)]
    for what, name_a, a, name_b, b in pairs:
        if a != b:
            raise UserError(f"model folder {root}: {what} differ: {name_a} is {a}, {name_b} is {b}. The components "
                            "come from different models; put components of one model together.")
