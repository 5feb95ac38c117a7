"""One model folder judged on one dataset: every figure and every picture of the page, reproducible from a seed."""

import json
import pathlib

import mindspore as ms
import numpy as np

from mindglm.data import readers
from mindglm.data.loader import ShardDataset
from mindglm.errors import UserError
from mindglm.evaluate import figures, held_out
from mindglm.generate.loading import check_model_folder
from mindglm.generate.pipeline import Pipeline
from mindglm.models.glyph_encoder.text import glyph_strings
from mindglm.order import rng

VAE_PICTURES, AR_PICTURES = 64, 128
"""Held-out pictures taken for the slower figures, half of them signs."""

SHEET_ROWS = 8
"""Also the batch size of every decoding, so that the VAE's decoder is compiled once."""


class Evaluation:
    """Figures return dictionaries for figures.json; pictures go to OUTPUT/pictures/<name>.png."""

    def __init__(self, pipeline, train, samples, originals, words, output: pathlib.Path, seed: int = 0,
                 steps: int = 30, guidance_scale: float = 1.5):
        """train: the training split. samples: held-out samples. originals: their pixels uint8 (N, H, W, 3).

        words: the quoted text of every sample that is a sign, None for the others.
        """
        self.pipeline, self.train, self.samples, self.originals = pipeline, train, samples, originals
        self.words, self.output = words, output
        self.seed, self.steps, self.guidance_scale = seed, steps, guidance_scale
        self.signs = [i for i, word in enumerate(words) if word is not None]
        self.height, self.width = (int(x) for x in samples[0]["target_size"])
        self.codes = [s["large_codes"] for s in samples]
        self.glyphs = [s["glyph"] for s in samples]
        self.other = held_out.another(self.codes, np.array_equal)
        if len({self.words[i].casefold() for i in self.signs}) > 1:
            partners = held_out.another([self.words[i].casefold() for i in self.signs])
            self.other_sign = {i: self.signs[partners[n]] for n, i in enumerate(self.signs)}
        else:
            self.other_sign = {}

    def picture_path(self, name: str) -> pathlib.Path:
        return self.output / "pictures" / f"{name}.png"

    # ---- figures ----

    def vae(self) -> dict:
        """PSNR of some held-out pictures, as many of each kind (decoding is slow); keeps them for the sheet."""
        rows = sorted({*self.mixed(VAE_PICTURES), *self.mixed(SHEET_ROWS)})
        decoded = self.pipeline.decode(np.stack([self.samples[i]["latents"] for i in rows]), SHEET_ROWS)
        self.decoded = dict(zip(rows, decoded))
        return held_out.vae_figures(self.originals[rows], decoded)

    def ar(self) -> dict:
        """Nats a code, with the own caption and another one; unigram figures over the same pictures."""
        model = self.pipeline.ar

        def forward(ids, positions):
            return model(ids, positions)

        forward = ms.jit(forward)
        samples = [self.samples[i] for i in self.mixed(AR_PICTURES)]
        other = held_out.another([s["caption"] for s in samples])
        prompts = [s["prompt_ids"] for s in samples]
        own_nll = held_out.ar_nll(forward, samples, prompts)
        other_nll = held_out.ar_nll(forward, samples, [prompts[j] for j in other])
        names = ("preview_codes", "large_codes")
        train = [self.train[i] for i in range(len(self.train))]
        return held_out.ar_figures(own_nll, other_nll, tuple(np.stack([s[n] for s in train]) for n in names),
                                   tuple(np.stack([s[n] for s in samples]) for n in names), model.config.num_codes)

    def codes_matter(self) -> dict:
        """Flow loss with a picture's own codes, another's, none; its own glyphs each time."""
        variants = {"right": held_out.Variant(self.codes, self.glyphs),
                    "other": held_out.Variant([self.codes[j] for j in self.other], self.glyphs),
                    "none": held_out.Variant(self.codes, self.glyphs, drop=True)}
        return self._flow(self.samples, variants)

    def glyphs_matter(self) -> dict:
        """On signs: flow loss with the own word's glyphs, another word's, the empty string's."""
        samples = [self.samples[i] for i in self.signs]
        codes, own = [self.codes[i] for i in self.signs], [self.glyphs[i] for i in self.signs]
        other = [self.glyphs[self.other_sign[i]] for i in self.signs]
        empty = [s["empty_glyph"] for s in samples]
        table = {}
        for name, drop in (("codes_given", False), ("codes_withheld", True)):
            table[name] = self._flow(samples, {"right": held_out.Variant(codes, own, drop),
                                               "other": held_out.Variant(codes, other, drop),
                                               "empty": held_out.Variant(codes, empty, drop)})
        return table

    def _flow(self, samples, variants) -> dict:
        return held_out.flow_figures(held_out.flow_losses(self.pipeline.dit_pass, self.pipeline.scheduler, samples,
                                                          variants, self.seed))

    # ---- pictures ----

    def choose(self, count: int, signs: bool | None = None) -> list[int]:
        """`count` sample indices, evenly spread over all samples, the signs or the others."""
        pool = [i for i in range(len(self.samples)) if signs is None or (self.words[i] is not None) == signs]
        return [pool[len(pool) * n // count] for n in range(min(count, len(pool)))] if len(pool) > count else pool

    def mixed(self, count: int) -> list[int]:
        """Half drawings, half signs, as far as there are."""
        return self.choose(count - count // 2, signs=False) + self.choose(count // 2, signs=True)

    def vae_sheet(self) -> None:
        rows = self.mixed(SHEET_ROWS)
        pairs = [[self.originals[i], self.decoded[i]] for i in rows]
        half = (len(pairs) + 1) // 2
        joined = [pairs[r] + (pairs[r + half] if r + half < len(pairs) else pairs[-1]) for r in range(half)]
        figures.sheet(joined, ["original", "through the VAE"] * 2).save(self.picture_path("vae"))

    def draw(self, rows, codes, glyphs, drop: bool = False) -> np.ndarray:
        """Pictures from given codes and glyphs; the noise belongs to the row, not to the condition."""
        noise = np.stack([self.pipeline.noise(self.height, self.width, rng(self.seed, 0, i, "evaluate/draw"))
                          for i in rows])
        latents = self.pipeline.sample_latents(noise, np.stack(codes), glyphs, self.height, self.width, self.steps,
                                               self.guidance_scale, drop=np.full(len(rows), drop))
        return self.pipeline.decode(latents, SHEET_ROWS)

    def codes_sheet(self) -> None:
        rows = self.mixed(SHEET_ROWS)
        glyphs, own = [self.glyphs[i] for i in rows], [self.codes[i] for i in rows]
        drawn = [self.draw(rows, own, glyphs), self.draw(rows, [self.codes[self.other[i]] for i in rows], glyphs),
                 self.draw(rows, own, glyphs, drop=True)]
        table = [[self.originals[i], drawn[0][n], self.originals[self.other[i]], drawn[1][n], drawn[2][n]]
                 for n, i in enumerate(rows)]
        titles = ["held-out picture", "from its codes", "another picture", "from that one's codes", "no codes"]
        figures.sheet(table, titles, [self.samples[i]["caption"] for i in rows]).save(self.picture_path("codes"))

    def glyphs_sheet(self) -> None:
        rows = self.choose(SHEET_ROWS, signs=True)
        codes = [self.codes[i] for i in rows]
        drawn = [self.draw(rows, codes, [self.glyphs[i] for i in rows]),
                 self.draw(rows, codes, [self.glyphs[self.other_sign[i]] for i in rows]),
                 self.draw(rows, codes, [self.samples[i]["empty_glyph"] for i in rows])]
        table = [[self.originals[i], *(d[n] for d in drawn)] for n, i in enumerate(rows)]
        labels = [f"{self.words[i]} (other word: {self.words[self.other_sign[i]]})" for i in rows]
        figures.sheet(table, ["held-out sign", "its word", "another's word", "empty string"], labels).save(
            self.picture_path("glyphs"))

    def samples_grid(self, count: int = 16) -> None:
        """Text to image, whole, for held-out prompts."""
        rows = self.mixed(count)
        prompts = [self.samples[i]["caption"] for i in rows]
        pictures = self.pipeline(prompts, self.height, self.width, steps=self.steps, seed=self.seed,
                                 guidance_scale=self.guidance_scale, progress=True)
        figures.captioned_grid([np.asarray(p) for p in pictures], prompts, 4).save(self.picture_path("samples"))


def load(model, dataset, images, output, seed: int, steps: int, guidance_scale: float, limit: int) -> Evaluation:
    """Checks everything that can be wrong, then loads the model and the samples."""
    check_model_folder(model)
    train = ShardDataset(dataset, "train", model_dir=model)
    held = ShardDataset(dataset, "held_out", model_dir=model)
    if len(held) < 2:
        raise UserError(f"dataset {dataset}: {len(held)} held-out sample; expected at least 2 to compare conditions.")
    if len(held.sizes) > 1:
        raise UserError(f"dataset {dataset}: it holds the sizes {held.describe()} (width x height); the page compares "
                        "pictures of one size: prepare its pictures once more with --height and --width")
    count = min(limit, len(held))
    samples = [held[len(held) * n // count] for n in range(count)]
    originals = []
    for sample in samples:
        path = pathlib.Path(images) / sample["id"]
        if not path.is_file():
            raise UserError(f"--images {images}: no {sample['id']} in it, which the dataset was made from. Give the "
                            "folder that `mindglm prepare --images` read.")
        image, _ = readers.load_image(path.read_bytes())
        originals.append(readers.fit(image, *(int(x) for x in sample["target_size"]))[0])
    return Evaluation(Pipeline.from_pretrained(model, compiled=True), train, samples, np.stack(originals),
                      sign_words(samples, images), output, seed, steps, guidance_scale)


def sign_words(samples, images) -> list[str | None]:
    """The quoted text of every sample that is a picture of it, None for the others.

    Some names hold quotes without being signs (Japanese “here” button): where captions.jsonl tells the kind, that
    decides.
    """
    path, kinds = pathlib.Path(images) / "captions.jsonl", {}
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        kinds = {row["file"]: row["kind"] for row in rows if "kind" in row}
    words = [" ".join(text for text in glyph_strings(s["caption"]) if text) for s in samples]
    return [w if w and kinds.get(s["id"], "sign") == "sign" else None for w, s in zip(words, samples)]
