"""Every model and every objective's step as Ascend would run them: compiled by the front end, kernels counted.

`python -m tests.ops.whole_models` prints the table of operations by model; with `--json` the counts themselves. It is a
program of its own because the device's form of `mindglm.ops` is chosen once, at the first import: MINDGLM_OPS=ascend
has to be set before. Models have the structure of the tiny reference checkpoint, at depth 1 and at depth 2: the
difference is what a layer launches. Weights are bfloat16; times, masks and losses are what the code makes of them.
"""

import argparse
import collections
import dataclasses
import json
import os

os.environ["MINDGLM_OPS"] = "ascend"
os.environ.setdefault("GLOG_v", "4")

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Tensor, nn  # noqa: E402

from mindglm.checkpoint.released import component_config  # noqa: E402
from mindglm.models.ar_generator import config as ar_config  # noqa: E402
from mindglm.models.ar_generator.model import ArGenerator  # noqa: E402
from mindglm.models.ar_generator.vision import VisionTokenizer  # noqa: E402
from mindglm.models.dit_decoder import config as dit_config  # noqa: E402
from mindglm.models.dit_decoder.model import DiTDecoder  # noqa: E402
from mindglm.models.glyph_encoder import config as glyph_config  # noqa: E402
from mindglm.models.glyph_encoder.model import GlyphEncoder  # noqa: E402
from mindglm.models.vae import config as vae_config  # noqa: E402
from mindglm.models.vae.model import VAE  # noqa: E402
from mindglm.objectives.ar_next_token import ArNextToken  # noqa: E402
from mindglm.objectives.flow_matching import FlowMatching  # noqa: E402
from mindglm.objectives.glyph_alignment import GlyphAlignment  # noqa: E402
from mindglm.objectives.vae_reconstruction import VaeReconstruction  # noqa: E402
from mindglm.objectives.vq_reconstruction import VqReconstruction  # noqa: E402
from mindglm.recipe import schema  # noqa: E402
from mindglm.train.work import gradient_function  # noqa: E402
from tests.golden import REPO  # noqa: E402
from tests.ops.kernel_table import count_kernels, markdown, without_kernel  # noqa: E402

BATCH = 2


class Call(nn.Cell):
    """A function of a model as a Cell; the model's parameters keep their names."""

    def __init__(self, model, function):
        super().__init__(auto_prefix=False)
        self.model, self.function = model, function

    def construct(self, *inputs):
        return self.function(*inputs)


class Decode(nn.Cell):
    """One cached step of the AR generator; the cache comes as flat (k, v, k, v, ...)."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_B1, position_3B1, mask_BT, *cache):
        pairs = [(cache[2 * i], cache[2 * i + 1]) for i in range(len(cache) // 2)]
        return self.model.decode(ids_B1, position_3B1, pairs, mask_BT)


class WithReferences(nn.Cell):
    """The DiT beside the cache of reference images, which comes as flat (k, v, k, v, ...)."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, latents, glyph, ids, drop, time, size, crop, *cache):
        pairs = [(cache[2 * i], cache[2 * i + 1]) for i in range(len(cache) // 2)]
        return self.model(latents, glyph, ids, drop, time, size, crop, None, pairs)


def bf16(*shape):
    return Tensor(np.ones(shape, np.float32)).astype(ms.bfloat16)


def f32(*shape):
    return Tensor(np.ones(shape, np.float32))


def i32(*shape):
    return Tensor(np.zeros(shape, np.int32))


def true(*shape):
    return Tensor(np.ones(shape, bool))


def half(cell):
    """The cell with bfloat16 parameters."""
    for parameter in cell.get_parameters():
        parameter.set_dtype(ms.bfloat16)
    return cell


def step(objective) -> nn.Cell:
    """Forward and backward of an objective as the trainer runs them (mindglm.train.work)."""
    network = half(objective.network)
    return Call(network, gradient_function(network, network.trainable_params(), compiled=False))


def ar_cases(depth: int):
    config = ar_config.from_hf(component_config(REPO, "vision_language_encoder"))
    text = dataclasses.replace(config.text_config, num_hidden_layers=depth)
    config = dataclasses.replace(config, text_config=text)
    model = half(ArGenerator(config))
    kv = bf16(BATCH, text.num_key_value_heads, 64, text.head_dim)
    yield "prefill, left padded", Call(model, model.prefill), (i32(BATCH, 32), i32(3, BATCH, 32), true(BATCH, 32))
    yield "decode one code", Decode(model), (i32(BATCH, 1), i32(3, BATCH, 1), true(BATCH, 65), *[kv] * (2 * depth))
    batch = i32(BATCH, 32), i32(3, BATCH, 32), i32(BATCH, 32), f32(BATCH, 32)
    yield "step ar_next_token", step(ArNextToken(config, schema.ArNextTokenOptions(), 0)), batch


def vision_cases(depth: int):
    config = ar_config.from_hf(component_config(REPO, "vision_language_encoder"))
    config = dataclasses.replace(config, vision_config=dataclasses.replace(config.vision_config, depth=depth))
    model, patch = half(VisionTokenizer(config)), config.vision_config.patch_dim

    def encode(patches_BhwP):
        return model.quantize(model.features(patches_BhwP))

    yield "encode to codes", Call(model, encode), (bf16(BATCH, 3, 5, patch),)
    objective = VqReconstruction(config, schema.VqReconstructionOptions(), 0)
    yield "step vq_reconstruction", step(objective), (f32(BATCH, 4, 4, patch), f32(BATCH, 2, 2, patch))


def dit_cases(depth: int):
    config = dataclasses.replace(dit_config.from_hf(component_config(REPO, "transformer")), num_layers=depth)
    latent = BATCH, config.in_channels, 8, 8
    conditions = (f32(BATCH, 3, config.text_embed_dim), true(BATCH, 3), i32(BATCH, 16), true(BATCH, 16), f32(BATCH),
                  f32(BATCH, 2), f32(BATCH, 2))
    glyph, mask, *rest = conditions
    model = half(DiTDecoder(config))
    yield "forward, padded glyphs", model, (f32(*latent), glyph, *rest, mask)
    yield "write a reference", Call(model, model.write), (f32(1, *latent[1:]), i32(1, 16), f32(1, 2))
    kv = bf16(BATCH, config.num_attention_heads, 16, config.attention_head_dim)
    yield "forward beside references", WithReferences(model), (f32(*latent), glyph, *rest, *[kv] * (2 * depth))
    objective = FlowMatching(config, schema.FlowMatchingOptions(), 0)
    yield "step flow_matching", step(objective), (f32(*latent), f32(*latent), *conditions)


def vae_cases(depth: int):
    config = dataclasses.replace(vae_config.from_hf(component_config(REPO, "vae")), layers_per_block=depth)
    model, side = half(VAE(config)), 4 * config.spatial_factor
    latent = f32(BATCH, config.latent_channels, 4, 4)
    yield "encode", Call(model, model.encode), (f32(BATCH, 3, side, side),)
    yield "decode", Call(model, model.decode), (latent,)
    objective = VaeReconstruction(config, schema.VaeReconstructionOptions(crop_size=side), 0)
    yield "step vae_reconstruction", step(objective), (f32(BATCH, 3, side, side), latent)


def glyph_cases(depth: int):
    config = dataclasses.replace(glyph_config.from_hf(component_config(REPO, "text_encoder")), num_layers=depth)
    yield "forward", half(GlyphEncoder(config)), (i32(BATCH, 12), true(BATCH, 12))
    options = schema.GlyphAlignmentOptions(max_bytes=10, bitmap_size=4)
    batch = i32(BATCH, 12), true(BATCH, 12), f32(BATCH, 12, config.d_model), true(BATCH, 12)
    yield "step glyph_alignment", step(GlyphAlignment(config, options, 0)), batch


MODELS = {"AR generator": ar_cases, "vision tokenizer": vision_cases, "DiT decoder": dit_cases, "VAE": vae_cases,
          "glyph encoder": glyph_cases}


def layers_added(name: str) -> int:
    """How many layers depth 2 has more than depth 1: a residual block a level in the VAE, of encoder and decoder."""
    if not name.startswith("VAE"):
        return 1
    levels = len(component_config(REPO, "vae")["block_out_channels"])
    return 2 * levels if "step" in name else levels


def count_all(models) -> dict[str, dict]:
    """{"model: pass": {"all": kernels at depth 2, "layer": kernels of one layer, "missing": those without a kernel}}"""
    counts = {}
    for model in models:
        shallow = {name: count_kernels(cell, *inputs) for name, cell, inputs in MODELS[model](1)}
        for name, cell, inputs in MODELS[model](2):
            deep, key = count_kernels(cell, *inputs), f"{model}: {name}"
            added = collections.Counter(deep)
            added.subtract(shallow[name])
            layer = {op: n / layers_added(key) for op, n in added.items() if n > 0}
            counts[key] = {"all": deep, "layer": layer, "missing": sorted(without_kernel(set(deep)))}
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true", help="print counts instead of the table")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this one; may be repeated")
    arguments = parser.parse_args()
    counts = count_all(arguments.model or MODELS)
    print(json.dumps(counts) if arguments.json else markdown(counts))


if __name__ == "__main__":
    main()
