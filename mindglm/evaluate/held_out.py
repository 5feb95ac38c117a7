"""Held-out figures: what each trained part knows of samples it never saw, beside what it would score without knowing.

Each comparison is paired: the same samples, the same noise and time steps, only one condition exchanged. Standard
errors are over samples (each sample's losses averaged first), so that they say how far the figure is from that of
another held-out set of the same kind.

Shapes: N samples, K time steps, B batch, S sequence, V ids of the head, C h w latent channels and sides.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindglm.generate.flow_sampler import FlowCondition, velocity
from mindglm.models.ar_generator.positions import training_positions
from mindglm.models.dit_decoder.conditions import pad_glyphs, upsample_codes
from mindglm.models.dit_decoder.scheduler import model_time
from mindglm.order import rng

TIMESTEPS = (100, 300, 500, 700, 900)
"""Training time steps k of 1..1000 at which the flow loss is measured: from little noise to almost only noise."""


# ---- arithmetic ----

def mean_and_error(values) -> dict:
    """{"mean", "standard_error", "count"} of independent values; the error is None for a single one."""
    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error, "count": len(values)}


def paired(losses: dict[str, np.ndarray], base: str = "right") -> dict:
    """Compares each entry of `losses` (name -> (N,) losses of the same samples) with losses[base].

    For every name its mean; for every other name also `minus_<base>` (paired mean difference and its standard error),
    `ratio` (mean over mean) and `<base>_wins` (share of samples where base has the lower loss).
    """
    table = {}
    for name, values in losses.items():
        table[name] = mean_and_error(values)
        if name != base:
            difference = np.asarray(values) - np.asarray(losses[base])
            table[name][f"minus_{base}"] = mean_and_error(difference)
            table[name]["ratio"] = float(np.mean(values) / np.mean(losses[base]))
            table[name][f"{base}_wins"] = float((difference > 0).mean())
    return table


def another(items, same=lambda a, b: a == b, distance: int = 7) -> list[int]:
    """For every item the index of another one that differs from it: the first from `distance` places on (cyclic).

    `same` tells what counts as equal: captions, words, codes. Not the very next one, since neighbours in a dataset are
    often variants of one drawing.
    """
    count = len(items)
    out = []
    for i in range(count):
        order = (j % count for j in range(i + distance, i + distance + count))
        different = (j for j in order if not same(items[i], items[j]))
        j = next(different, None)
        assert j is not None, f"all {count} items are the same: there is no other condition to compare with"
        out.append(j)
    return out


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio in dB of two uint8 pictures; identical ones give 99."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255.0**2 / error))


def unigram(train_codes: np.ndarray, held_out_codes: np.ndarray, num_codes: int) -> dict:
    """What a model without any context scores: nats a code.

    entropy: of the training codes under their own frequencies. cross_entropy: of the held-out codes under the training
    frequencies, with one added to every count so that an unseen code costs a finite amount. used: codes that occur.
    """
    counts = np.bincount(np.asarray(train_codes).reshape(-1), minlength=num_codes).astype(np.float64)
    share = counts[counts > 0] / counts.sum()
    smooth = (counts + 1) / (counts.sum() + num_codes)
    return {"entropy": float(-(share * np.log(share)).sum()),
            "cross_entropy": float(-np.log(smooth[np.asarray(held_out_codes).reshape(-1)]).mean()),
            "used": int((counts > 0).sum()), "num_codes": num_codes}


def batches(count: int, size: int):
    """(indices, how many of them are new): every batch has `size` entries, the last one repeats the final index."""
    for start in range(0, count, size):
        fresh = min(size, count - start)
        yield np.minimum(np.arange(start, start + size), count - 1), fresh


# ---- the VAE ----

def vae_figures(originals: np.ndarray, decoded: np.ndarray) -> dict:
    """PSNR of decoded latents against the pixels they were encoded from, uint8 (N, H, W, 3).

    `mean_colour` is the score of a picture that is one flat colour, its original's mean: what no latent would give.
    """
    flat = np.round(originals.mean((1, 2), keepdims=True)).astype(np.uint8)
    without = [psnr(a, np.broadcast_to(b, a.shape)) for a, b in zip(originals, flat)]
    return {"psnr_db": mean_and_error([psnr(a, b) for a, b in zip(originals, decoded)]),
            "mean_colour_psnr_db": mean_and_error(without)}


# ---- the AR generator ----

def ar_nll(model, samples, prompts, batch_size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Negative log likelihood of every code of `samples`, teacher-forced, in nats: preview (N, P), large (N, L).

    model: (ids_BS, positions_3BS) -> logits_BSV. prompts: prompt ids a sample, its own or another's. Samples have one
    target size.
    """
    codes = [np.concatenate([s["preview_codes"].reshape(-1), s["large_codes"].reshape(-1)]) for s in samples]
    grids = [samples[0]["large_codes"].shape, samples[0]["preview_codes"].shape]
    total = len(codes[0])
    length = -(-(max(len(p) for p in prompts) + total) // 32) * 32
    out = np.zeros((len(samples), total))
    for rows, fresh in batches(len(samples), batch_size):
        ids = np.zeros((batch_size, length), np.int32)
        position = np.zeros((3, batch_size, length), np.int32)  # padding on the right: causality hides it
        for b, row in enumerate(rows):
            sequence = np.concatenate([prompts[row], codes[row]])
            ids[b, :len(sequence)] = sequence
            position[:, b, :len(sequence)] = training_positions(len(prompts[row]), grids)
        logits = model(Tensor(ids), Tensor(position)).asnumpy()
        for b, row in enumerate(rows[:fresh]):
            start = len(prompts[row]) - 1  # the last prompt token predicts the first code
            out[row] = _nll(logits[b, start:start + total], codes[row])
    cut = samples[0]["preview_codes"].size
    return out[:, :cut], out[:, cut:]


def _nll(logits_NV: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    logits = logits_NV.astype(np.float64)
    top = logits.max(-1)
    return top + np.log(np.exp(logits - top[:, None]).sum(-1)) - logits[np.arange(len(labels_N)), labels_N]


def ar_figures(own, other, train_codes, held_out_codes, num_codes: int) -> dict:
    """Nats a code with the sample's own caption and with another's, beside the unigram figures.

    own, other: (preview nll (N, P), large nll (N, L)). train_codes, held_out_codes: (preview, large) arrays.
    """
    def both(pair):
        return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in pair], 1)

    parts = {"preview": tuple(x[0] for x in (own, other, train_codes, held_out_codes)),
             "large": tuple(x[1] for x in (own, other, train_codes, held_out_codes)),
             "together": tuple(both(x) for x in (own, other, train_codes, held_out_codes))}
    table = {}
    for name, (nll, nll_other, train, held) in parts.items():
        table[name] = {"captions": paired({"right": nll.mean(1), "other": nll_other.mean(1)}),
                       "unigram": unigram(train, held, num_codes), "codes_per_image": int(nll.shape[1])}
    return table


# ---- the DiT ----

@dataclass(frozen=True)
class Variant:
    """One choice of conditions for every sample: whose codes, whose glyphs."""

    codes: list
    """Large codes (h32, w32) a sample."""
    glyphs: list
    """Glyph features (T, D) a sample."""
    drop: bool = False
    """Withhold the codes."""


def flow_losses(dit, scheduler, samples, variants: dict[str, Variant], seed: int = 0, timesteps=TIMESTEPS,
                batch_size: int = 32) -> dict[str, np.ndarray]:
    """Flow-matching loss (reference section 5.3) of each variant: name -> (N, K).

    dit: as `DiTDecoder`. Samples have one size. Noise is a function of (seed, sample, time step) alone, so the
    variants differ in nothing but their conditions.
    """
    channels, h, w = samples[0]["latents"].shape
    height, width = (int(x) for x in samples[0]["target_size"])
    longest = max(len(g) for v in variants.values() for g in v.glyphs)
    pairs = [(i, k) for i in range(len(samples)) for k in timesteps]
    losses = {name: np.zeros(len(pairs)) for name in variants}
    for rows, fresh in batches(len(pairs), batch_size):
        chosen = [pairs[r] for r in rows]
        noise = np.stack([rng(seed, k, i, "evaluate/noise").standard_normal((channels, h, w), dtype=np.float32)
                          for i, k in chosen])
        clean = np.stack([samples[i]["latents"] for i, _ in chosen]).astype(np.float32)
        k_B = np.array([k for _, k in chosen])
        s = scheduler.sigma(k_B, h * w // 4).reshape(-1, 1, 1, 1)
        crop = np.stack([samples[i]["crop"] for i, _ in chosen])
        for name, variant in variants.items():
            condition = condition_of(variant, [i for i, _ in chosen], longest)
            v = velocity(dit, (1 - s) * clean + s * noise, condition, model_time(k_B), height, width, crop)
            losses[name][rows[:fresh]] = ((v - (noise - clean)) ** 2).mean((1, 2, 3))[:fresh]
    return {name: values.reshape(len(samples), len(timesteps)) for name, values in losses.items()}


def condition_of(variant: Variant, rows, longest: int) -> FlowCondition:
    """The conditions of some samples, glyphs padded to one length so that every batch has the same shapes."""
    prior = upsample_codes(np.stack([variant.codes[i] for i in rows]))
    glyph, mask = pad_glyphs([variant.glyphs[i] for i in rows], 8, longest)
    return FlowCondition(glyph, mask, prior, np.full(prior.shape, variant.drop))


def flow_figures(losses: dict[str, np.ndarray], timesteps=TIMESTEPS) -> dict:
    """Paired comparison of per-sample means, and the mean of every variant at every time step."""
    return {"variants": paired({name: values.mean(1) for name, values in losses.items()}),
            "by_timestep": {name: [float(x) for x in values.mean(0)] for name, values in losses.items()},
            "timesteps": list(timesteps)}
