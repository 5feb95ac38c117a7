"""Real Cells at nano scale beside the planner's figures for them."""

import dataclasses
import functools
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindglm import recipe
from mindglm.models import workload as workloads
from mindglm.objectives.ar_next_token import ArNextToken
from mindglm.objectives.flow_matching import FlowMatching
from mindglm.objectives.parts import Parts
from mindglm.ops import tape
from mindglm.plan import layout as layouts

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = {"ar": ArNextToken, "dit": FlowMatching}
SEED = 3


@functools.cache
def nano(model: str, *overrides: str):
    """The nano recipe of "ar" or "dit"."""
    return recipe.load(ROOT / "recipes" / "nano" / f"{model}.yaml", ["context.mode=1", *overrides])


def resized(loaded, layers: int, **sizes):
    """The recipe with another depth, and other fields of its structure."""
    config = loaded.model.model_config
    if loaded.model_type == "ArGenerator":
        config = dataclasses.replace(config, text_config=dataclasses.replace(
            config.text_config, num_hidden_layers=layers, **sizes))
    else:
        config = dataclasses.replace(config, num_layers=layers, **sizes)
    return dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, model_config=config))


def objective(loaded, ranges, recompute=frozenset()):
    """The objective that holds these ranges of units. recompute: numbers of layers."""
    kind = OBJECTIVES["ar" if loaded.model_type == "ArGenerator" else "dit"]
    return kind(loaded.model.model_config, loaded.objective, SEED,
                parts=Parts(tuple(ranges), frozenset(layer + 1 for layer in recompute)))


def planned(loaded, pixels: int = 128, text: int = 16, **layout):
    """(workload in the composed form, layout) of a recipe for square pictures and captions of so many tokens."""
    workload = workloads.of_recipe(loaded, "composed", [(pixels, pixels, 1.0)], text, text)
    return workload, dataclasses.replace(layouts.of_recipe(loaded), **layout)


def batch(loaded, samples: int, pixels: int, text: int) -> tuple[np.ndarray, ...]:
    """Arrays as the objective's `collate` gives them, of the size that `planned` was asked for."""
    rng, config = np.random.default_rng(0), loaded.model.model_config
    if loaded.model_type == "ArGenerator":
        length = workloads.of_recipe(loaded, "composed", [(pixels, pixels, 1.0)], text, text).samples[0].tokens
        ids = rng.integers(0, config.num_codes, (samples, length)).astype(np.int32)
        positions = np.tile(np.arange(length, dtype=np.int32), (3, samples, 1))
        return ids, positions, ids, np.ones((samples, length), np.float32)
    side, tokens = pixels // 8, (pixels // 16) ** 2
    padded = -(-text // loaded.objective.glyph_pad_to) * loaded.objective.glyph_pad_to
    latents = rng.standard_normal((2, samples, config.in_channels, side, side), dtype=np.float32)
    return (*latents, rng.standard_normal((samples, padded, config.text_embed_dim), dtype=np.float32),
            np.ones((samples, padded), bool), rng.integers(0, 256, (samples, tokens)).astype(np.int32),
            rng.random((samples, tokens)) < 0.2, rng.random(samples).astype(np.float32),
            np.full((samples, 2), pixels, np.float32), np.zeros((samples, 2), np.float32))


def kept_bytes(parts, number: int, arrays) -> int:
    """Bytes of the tensors that part `number` of an objective keeps after its forward pass, until its backward.

    Counted is the memory of the tensors that the tape saves, and of what a pipeline's flight holds: what came in and
    went out.
    """
    stage, inputs = parts.model.stages[number], parts.stage_inputs(arrays)
    weights = {parameter.data_ptr() for parameter in stage.get_parameters()}
    carried = () if stage.first else tuple(
        tape.leaf(Tensor(np.ones(shape, np.float32))) for shape, _ in stage.received(inputs))
    spans: set[tuple[int, int]] = set()  # of memory: (first byte, one past the last)
    alive = []  # memory that is given back could be given out again and be counted as one

    def note(tensor):
        alive.append(tensor)
        if tensor.data_ptr() not in weights:
            spans.add((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes))
        return tensor

    with ms.saved_tensors_hooks(note, lambda tensor: tensor), tape.recording():
        outputs = stage(carried, inputs)
        if stage.last:
            outputs = parts.stage_loss(*outputs, arrays)[:1]
    for tensor in (*carried, *outputs):
        note(tensor)
    total = end = 0
    for start, stop in sorted(spans):  # views share the memory of what they look at
        total, end = total + max(0, stop - max(start, end)), max(end, stop)
    return total
