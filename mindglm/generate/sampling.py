"""The choice of the next image code: the logit filters of generation_config.json, in NumPy.

Order as in the public `generate()`: forbidden ids, temperature, top-k, top-p (reference section 3.1 step 3).
Random numbers come from the caller's generators, one uniform number a code and a picture, so the codes of a
picture do not depend on how many pictures are drawn beside it.
"""

import json
import math
import pathlib
from dataclasses import dataclass

import numpy as np

from mindglm.errors import UserError

# Settings of the public library that would change the choice of codes and that are not built here: each must be
# absent or neutral. A file that asks for one of them is refused rather than half obeyed.
_NEUTRAL = {"num_beams": 1, "num_beam_groups": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
            "typical_p": 1.0, "min_p": None, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
            "no_repeat_ngram_size": 0, "penalty_alpha": None, "guidance_scale": None, "bad_words_ids": None,
            "sequence_bias": None, "begin_suppress_tokens": None, "forced_eos_token_id": None,
            "forced_bos_token_id": None, "min_length": 0, "min_new_tokens": None}


@dataclass(frozen=True)
class SamplingConfig:
    """How the next code is chosen. The defaults are the released generation_config.json with the library's top-k."""

    do_sample: bool = True
    """False: the likeliest id."""
    temperature: float = 0.9
    top_k: int = 50
    """Keep the k likeliest ids and every tie with the last of them; 0 keeps all."""
    top_p: float = 0.75
    """Keep the smallest set of likeliest ids whose probability reaches top_p, the one that crosses it included."""
    suppress_tokens: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, values: dict, where: str = "generation_config.json") -> "SamplingConfig":
        """Reads the dictionary of a generation_config.json; absent keys take the public library's defaults.

        Raises UserError for values out of range and for settings that are not built here.
        """
        asked = [k for k, neutral in _NEUTRAL.items() if values.get(k) not in (None, neutral)]
        if asked:
            raise UserError(f"{where} asks for {', '.join(asked)}, which mindglm does not build. Remove the key, or "
                            f"set it to its neutral value ({', '.join(f'{k}: {_NEUTRAL[k]}' for k in asked)}).")
        config = cls(bool(values.get("do_sample", False)), float(_get(values, "temperature", 1.0)),
                     int(_get(values, "top_k", 50)), float(_get(values, "top_p", 1.0)),
                     tuple(int(i) for i in values.get("suppress_tokens") or ()))
        if not (config.temperature > 0 and math.isfinite(config.temperature)):
            raise UserError(f"{where}: temperature is {config.temperature}; expected a number above 0. "
                            "For the likeliest code every time, set do_sample to false.")
        if config.top_k < 0 or not 0 < config.top_p <= 1:
            raise UserError(f"{where}: top_k is {config.top_k}, top_p is {config.top_p}; "
                            "expected top_k >= 0 and 0 < top_p <= 1.")
        return config

    @classmethod
    def from_pretrained(cls, model_dir) -> "SamplingConfig":
        """vision_language_encoder/generation_config.json of a model folder; without the file, the released values."""
        path = pathlib.Path(model_dir) / "vision_language_encoder" / "generation_config.json"
        if not path.is_file():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error
        return cls.from_hf(values, str(path))


def _get(values: dict, key: str, default):
    return default if values.get(key) is None else values[key]


def filter_logits(logits_BV: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Temperature, then top-k, then top-p: float32 logits with -inf where an id is ruled out."""
    scores_BV = logits_BV.astype(np.float32) / np.float32(config.temperature)
    size = scores_BV.shape[-1]
    if 0 < config.top_k < size:
        kth_B1 = np.partition(scores_BV, size - config.top_k, axis=-1)[:, size - config.top_k, None]
        scores_BV = np.where(scores_BV < kth_B1, -np.inf, scores_BV)
    if config.top_p < 1:
        order_BV = np.argsort(scores_BV, axis=-1, kind="stable")
        # Summed in float64 and rounded once, as torch does on CPU: a tie with the threshold then falls alike.
        sorted_BV = _softmax(np.take_along_axis(scores_BV, order_BV, -1))
        cumulative_BV = np.cumsum(sorted_BV, axis=-1, dtype=np.float64).astype(np.float32)
        remove_BV = cumulative_BV <= np.float32(1 - config.top_p)
        remove_BV[:, -1] = False
        ruled_out_BV = np.zeros_like(remove_BV)
        np.put_along_axis(ruled_out_BV, order_BV, remove_BV, -1)
        scores_BV = np.where(ruled_out_BV, -np.inf, scores_BV)
    return scores_BV.astype(np.float32)


def choose(logits_BV: np.ndarray, config: SamplingConfig, generators, num_codes: int | None) -> np.ndarray:
    """One id a row, int32 (B,).

    num_codes: ids at or above it are forbidden (inside a grid); None leaves the choice to the model, as the public
    pipeline does. generators: one np.random.Generator a row; each gives exactly one number a call.
    """
    scores_BV = logits_BV.astype(np.float32, copy=True)
    if num_codes is not None:
        scores_BV[:, num_codes:] = -np.inf
    if config.suppress_tokens:
        scores_BV[:, [i for i in config.suppress_tokens if i < scores_BV.shape[-1]]] = -np.inf
    draws_B = np.array([g.random() for g in generators])
    if not np.isfinite(scores_BV).any(-1).all():
        raise UserError("the AR generator gave no finite logit for any allowed image code. The weights hold NaN or "
                        "infinite values, or generation_config.json suppresses every code.")
    if not config.do_sample:
        return scores_BV.argmax(-1).astype(np.int32)
    cumulative_BV = np.cumsum(_softmax(filter_logits(scores_BV, config).astype(np.float64)), axis=-1)
    # The number is scaled by the row's own total, so that rounding never selects an id past the last kept one.
    ids = [int(np.searchsorted(c, u * c[-1], side="right")) for c, u in zip(cumulative_BV, draws_B)]
    return np.array(ids, np.int32)


def _softmax(scores_BV: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores_BV - scores_BV.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)
