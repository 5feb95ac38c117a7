"""Objective flow_matching: loss and every gradient of the public DiT (family `train_dit`), and what collate draws."""

import json
import types

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm.errors import UserError
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder import hf_names
from mindglm.models.dit_decoder.conditions import pad_glyphs
from mindglm.objectives.flow_matching import FlowMatching
from mindglm.recipe.models import SchedulerConfig
from tests.golden import REPO, fixture, load, rel_error

CONFIG = dit_config.from_hf(json.loads((REPO / "transformer" / "config.json").read_text()))


def options(**change):
    return types.SimpleNamespace(**{"condition_dropout": 0.0, "glyph_dropout": 0.0, "code_corruption": 0.0,
                                    "timestep_density": "uniform", "glyph_pad_to": 8, **change})


def draw(i, purpose):
    return np.random.default_rng([i, *purpose.encode()])


def samples(count=3, height=8, width=12):
    found = []
    for i in range(count):
        generator = np.random.default_rng(100 + i)
        found.append({
            "latents": generator.standard_normal((4, height, width), dtype=np.float32),
            "glyph": generator.standard_normal((3 + i % 4, 40), dtype=np.float32),
            "empty_glyph": np.full((1, 40), 7, np.float32),
            "large_codes": generator.integers(0, 64, (height // 4, width // 4)),
            "target_size": np.array([8 * height, 8 * width], np.float32),
            "crop": np.array([16, 8], np.float32)})
    return found


@pytest.fixture(scope="module")
def objective():
    made = FlowMatching(CONFIG, options(), seed=0)
    load(made.model, "transformer")
    return made


def network_inputs(golden, prefix="t2i."):
    z, e = golden[prefix + "latent"], golden[prefix + "noise"]
    text = golden[prefix + "text"]
    return [Tensor(a) for a in (
        golden[prefix + "noisy"], e - z, text, np.ones(text.shape[:2], bool),
        golden[prefix + "prior_token_id"].astype(np.int32), golden[prefix + "prior_token_drop"],
        golden[prefix + "t"] - 1, np.array([[64.0, 96.0]] * 2, np.float32), np.zeros((2, 2), np.float32))]


@pytest.mark.parametrize("compiled", [False, True], ids=["pynative", "one_graph"])
def test_loss_and_all_gradients_of_the_reference(objective, compiled):
    golden = fixture("train_dit")
    weights = objective.network.trainable_params()
    step = ms.value_and_grad(objective.network, None, weights, has_aux=True)
    (loss, weight), gradients = (ms.jit(step) if compiled else step)(*network_inputs(golden))
    count = float(weight.asnumpy())
    assert count == 2
    assert rel_error(loss.asnumpy().reshape(1) / count, golden["t2i.loss"]) < 1e-5
    assert len(gradients) == sum(name.startswith("t2i.grad.") for name in golden)
    for parameter, gradient in zip(weights, gradients):
        assert rel_error(gradient.asnumpy() / count, golden["t2i.grad." + parameter.name]) < 1e-4, parameter.name


def test_input_target_and_time_are_the_formula_s(objective):
    items = samples(6)
    noisy, target, _, _, _, _, times, _, _ = objective.collate(items, draw, training=True)
    mu = 0.75 * np.sqrt(24 / 256) + 0.25
    for i, item in enumerate(items):
        k = times[i] + 1
        assert k == int(k) and 1 <= k <= 1000
        sigma = mu / (mu + 1000 / k - 1)
        noise = target[i] + item["latents"]
        np.testing.assert_allclose(noisy[i], (1 - sigma) * item["latents"] + sigma * noise, atol=1e-5)
        assert 0.8 < noise.std() < 1.2


def test_collate_feeds_the_network(objective):
    batch = objective.collate(samples(), draw, training=True)
    loss, weight = objective.network(*map(Tensor, batch))
    velocity = objective.model(*(Tensor(batch[k]) for k in (0, 2, 4, 5, 6, 7, 8, 3))).asnumpy()
    per_sample = ((velocity - batch[1]) ** 2).mean((1, 2, 3))
    assert weight.asnumpy() == 3
    np.testing.assert_allclose(loss.asnumpy(), per_sample.sum(), rtol=1e-5)
    assert [a.dtype.name for a in batch] == ["float32"] * 3 + ["bool", "int32", "bool"] + ["float32"] * 3


def test_codes_are_repeated_twice_each_way(objective):
    items = samples(2)
    ids = objective.collate(items, draw, training=False)[4].reshape(2, 4, 6)
    for grid, item in zip(ids, items):
        for row in range(4):
            for column in range(6):
                assert grid[row, column] == item["large_codes"][row // 2, column // 2]


def test_glyph_padding_is_masked(objective):
    _, _, glyph, mask, *_ = objective.collate(samples(4), draw, training=False)
    assert glyph.shape == (4, 8, 40) and mask.sum(1).tolist() == [3, 4, 5, 6]
    assert not glyph[~mask].any()
    features, mask = pad_glyphs([np.ones((8, 2)), np.ones((9, 2))], 8)
    assert features.shape == (2, 16, 2) and mask.sum(1).tolist() == [8, 9]


def test_condition_dropout_takes_codes_and_glyphs_together():
    objective = FlowMatching(CONFIG, options(condition_dropout=0.3, glyph_dropout=0.2), seed=0)
    items = samples(400)
    _, _, glyph, mask, _, drop, *_ = objective.collate(items, draw, training=True)
    empty = (glyph[:, -1] == 7).all(-1) & (mask.sum(1) == 1)
    assert (drop.all(1) == drop.any(1)).all()
    assert empty[drop[:, 0]].all()
    assert 0.24 < drop[:, 0].mean() < 0.36
    assert 0.14 < empty[~drop[:, 0]].mean() < 0.26


def test_corruption_replaces_the_asked_share_of_codes():
    objective = FlowMatching(CONFIG, options(code_corruption=0.25), seed=0)
    items = samples(300)
    ids = objective.collate(items, draw, training=True)[4].reshape(-1, 4, 6)[:, ::2, ::2]
    changed = ids != np.stack([item["large_codes"] for item in items])
    assert 0.2 < changed.mean() < 0.29
    assert ids.min() >= 0 and ids.max() < 64


def test_validation_drops_and_corrupts_nothing():
    objective = FlowMatching(CONFIG, options(condition_dropout=1.0, glyph_dropout=1.0, code_corruption=1.0), seed=0)
    items = samples(3)
    _, _, _, mask, ids, drop, *_ = objective.collate(items, draw, training=False)
    assert not drop.any() and mask.sum(1).tolist() == [3, 4, 5]
    np.testing.assert_array_equal(ids.reshape(-1, 4, 6)[:, ::2, ::2], [item["large_codes"] for item in items])


@pytest.mark.parametrize("density, low, high", [("uniform", 0.28, 0.40), ("logit_normal", 0.44, 0.60)])
def test_timestep_density(density, low, high):
    """Share of times in the middle third: 1/3 uniformly, 0.51 for a logit-normal."""
    objective = FlowMatching(CONFIG, options(timestep_density=density), seed=0)
    times = objective.collate(samples(600, 4, 4), draw, training=True)[6]
    assert times.min() >= 0 and times.max() <= 999
    assert low < ((times > 333) & (times < 667)).mean() < high


def test_scheduler_numbers_are_used():
    objective = FlowMatching(CONFIG, options(), 0, scheduler=SchedulerConfig(base_shift=0.5, max_shift=1.0))
    items = samples(2)
    noisy, target, *_, times, _, _ = objective.collate(items, draw, training=True)
    mu = np.sqrt(24 / 256) + 0.5
    sigma = (mu / (mu + 1000 / (times + 1) - 1))[:, None, None, None]
    latents = np.stack([item["latents"] for item in items])
    np.testing.assert_allclose(noisy, latents + sigma * target, atol=1e-5)


def test_exported_names_are_the_released_ones(objective):
    assert {n: p.shape for n, p in objective.component_tensors().items()} == hf_names.tensors(CONFIG)


def test_user_mistakes(objective):
    with pytest.raises(UserError, match="different sizes"):
        objective.collate(samples(1) + samples(1, 4, 4), draw, training=True)
    wrong = samples(1)
    wrong[0]["latents"] = np.zeros((8, 8, 12), np.float32)
    with pytest.raises(UserError, match="8 channels"):
        objective.collate(wrong, draw, training=True)
