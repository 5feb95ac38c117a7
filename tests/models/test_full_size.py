"""The released sizes: exact names, shapes and counts without memory, and one layer of full width really computing."""

import json
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm import ops, recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "glm_image"
SEED = 3


def test_full_size_models_are_built_without_memory():
    """Cells of all four components: names and shapes equal the released lists, section 1's counts, 10 s and 1 GB."""
    result = subprocess.run([sys.executable, "-m", "tests.models.full_size"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    found = {name: (part["tensors"], part["parameters"], part["dtype"]) for name, part in told["components"].items()}
    assert found == {
        "vision_language_encoder": (1011, 10_114_245_632, "bfloat16"), "transformer": (443, 6_926_882_880, "bfloat16"),
        "vae": (288, 406_100_643, "bfloat16"), "text_encoder": (111, 217_657_472, "float32")}
    assert told["seconds"] < 10 and told["bytes"] < 1e9


def slope(parameter, run) -> tuple[float, float]:
    """(change of the loss for a small step of `parameter` along its gradient, what the gradient says it is)."""
    gradient = ms.grad(run, None, [parameter])()
    gradient = (gradient[0] if isinstance(gradient, tuple) else gradient).asnumpy().copy()
    values = parameter.asnumpy().copy()
    step = gradient * np.float32(1e-3 * np.linalg.norm(values) / np.linalg.norm(gradient))
    losses = []
    for moved in (values + step, values - step):
        parameter.set_data(Tensor(moved))
        losses.append(float(run().asnumpy()))
    parameter.set_data(Tensor(values))
    return (losses[0] - losses[1]) / 2, float((gradient.astype(np.float64) * step).sum())


def check_gradients(cell, names, run):
    """Gradients of some parameters, deep in the layer, agree with finite differences."""
    parameters = {parameter.name: parameter for parameter in cell.get_parameters()}
    for name in names:
        measured, derived = slope(parameters[name], run)
        assert derived > 0 and abs(measured - derived) < 0.05 * derived, (name, measured, derived)


@pytest.mark.slow
def test_a_full_width_ar_layer_runs_forward_and_backward():
    from mindglm.models.ar_generator.model import Layer, Rotary

    text = recipe.load(RECIPES / "ar_9b_pretrain_256.yaml").model.model_config.text_config
    layer = Layer(text)
    ops.init_parameters(layer, SEED)
    assert sum(p.size for p in layer.get_parameters()) == 203_969_024
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((1, 24, text.hidden_size)).astype(np.float32))
    weights = Tensor(rng.standard_normal(x.shape).astype(np.float32) / 100)
    ramp = Tensor(np.broadcast_to(np.arange(24, dtype=np.int32), (3, 1, 24)).copy())
    cos, sin = Rotary(text)(ramp)

    def loss():
        return (layer(x, cos, sin)[0] * weights).sum()

    assert np.isfinite(layer(x, cos, sin)[0].asnumpy()).all()
    check_gradients(layer, ["self_attn.k_proj.weight", "mlp.down_proj.weight"], loss)


@pytest.mark.slow
def test_a_full_width_dit_block_runs_forward_and_backward():
    from mindglm.models.dit_decoder.model import Block

    config = recipe.load(RECIPES / "dit_7b_pretrain_256.yaml").model.model_config
    block = Block(config)
    rng = np.random.default_rng(0)
    for parameter in block.get_parameters():  # the modulation starts at zero, which would hide the rest
        parameter.set_data(Tensor(rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(0.02)))
    assert sum(p.size for p in block.get_parameters()) == 226_578_432
    d, head = config.hidden_size, config.attention_head_dim
    image, text, time = (Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in (
        (1, 16, d), (1, 5, d), (1, config.time_embed_dim)))
    angle = rng.standard_normal((1, 1, 5 + 16, head)).astype(np.float32)
    angle[:, :, :5] = 0  # text is not rotated
    cos, sin = Tensor(np.cos(angle)), Tensor(np.sin(angle))
    weights = Tensor(rng.standard_normal(image.shape).astype(np.float32) / 100)

    def loss():
        return (block(image, text, time, cos, sin, None)[0] * weights).sum()

    assert np.isfinite(block(image, text, time, cos, sin, None)[1].asnumpy()).all()
    check_gradients(block, ["attn1.to_k.weight", "ff.net.2.weight"], loss)
