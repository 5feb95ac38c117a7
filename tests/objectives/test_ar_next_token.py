"""Next-code loss against the public torch class: loss, weighted loss, per-token nll and every gradient."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm.checkpoint.released import component_config
from mindglm.errors import UserError
from mindglm.models.ar_generator import hf_names
from mindglm.models.ar_generator.config import from_hf
from mindglm.models.ar_generator.positions import training_positions
from mindglm.models.ar_generator.processor import Processor
from mindglm.objectives.ar_next_token import IGNORE, ArNextToken
from tests.golden import REPO, fixture, load, rel_error

CONFIG = from_hf(component_config(REPO, hf_names.COMPONENT))
START = CONFIG.image_start_token_id
PROMPT = 20
"""Prompt ids of the fixture; 6 preview and 12 large codes follow."""


def options(**changes):
    return SimpleNamespace(**{"preview_weight": 2.0, "pad_to_multiple": 16, "prompt_dropout": 0.0, "progressive": True,
                              **changes})


def build(**changes):
    objective = ArNextToken(CONFIG, options(**changes), seed=0)
    load(objective.model, hf_names.COMPONENT)
    return objective


def sample(data):
    codes = data["input_ids"][0, PROMPT:]
    return {"id": "cat", "prompt_ids": data["input_ids"][0, :PROMPT], "preview_codes": codes[:6].reshape(3, 2),
            "large_codes": codes[6:].reshape(4, 3)}


def no_draw(index, purpose):
    raise AssertionError("nothing to draw")


def tensors(batch):
    return [Tensor(array) for array in batch]


@pytest.fixture(scope="module")
def data():
    return fixture("train_ar")


@pytest.fixture(scope="module")
def objective():
    return build()


def test_collate_makes_the_reference_inputs(objective, data):
    ids, positions, labels, weights = objective.collate([sample(data)], no_draw, True)
    n = data["input_ids"].shape[1]
    assert ids.shape == (1, 48) and ids.dtype == positions.dtype == labels.dtype == np.int32
    assert np.array_equal(ids[:, :n], data["input_ids"])
    assert np.array_equal(positions[:, :, :n], data["position_ids"])
    assert np.array_equal(labels[:, :n], data["labels_shifted"])
    assert (labels[:, n:] == IGNORE).all() and (weights[:, n:] == 0).all()
    assert weights.dtype == np.float32 and weights.sum() == 6 * 2 + 12 + 1


def test_nll_and_losses(objective, data):
    ids, positions, labels, weights = tensors(objective.collate([sample(data)], no_draw, False))
    nll = objective.network.nll(ids, positions, labels)
    assert rel_error(nll[0, : len(data["token_nll"])], data["token_nll"]) <= 1e-5
    total, weight = objective.network(ids, positions, labels, weights)
    assert rel_error((total / weight).reshape(1), data["preview_weight2_loss"]) <= 1e-5


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_all_gradients(data, compiled):
    """Unweighted as the reference differentiates it; eagerly and as one compiled graph."""
    objective = build(preview_weight=1.0)
    network, parameters = objective.network, list(objective.network.trainable_params())

    def forward(ids, positions, labels, weights):
        total, weight = network(ids, positions, labels, weights)
        return total / weight

    step = ms.value_and_grad(forward, None, parameters)
    if compiled:
        step = ms.jit(step)
    loss, gradients = step(*tensors(objective.collate([sample(data)], no_draw, True)))
    assert rel_error(loss.reshape(1), data["loss"]) <= 1e-5
    expected = {name.removeprefix("grad."): value for name, value in data.items() if name.startswith("grad.")}
    assert {parameter.name for parameter in parameters} == set(expected)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert rel_error(gradient, expected[parameter.name]) <= 1e-4, parameter.name


def test_batch_is_the_sum_of_its_samples(objective, data):
    """Samples of other lengths and grids, padded together, change nothing for each other."""
    rng = np.random.default_rng(0)
    short = {"id": "b", "prompt_ids": np.array([200, 201, START]), "preview_codes": rng.integers(0, 64, (2, 2)),
             "large_codes": rng.integers(0, 64, (1, 3))}
    pair = [sample(data), short]
    total, weight = objective.network(*tensors(objective.collate(pair, no_draw, True)))
    alone = [objective.network(*tensors(objective.collate([one], no_draw, True))) for one in pair]
    assert float(weight) == sum(float(w) for _, w in alone)
    assert abs(float(total) / sum(float(t) for t, _ in alone) - 1) <= 1e-5


def test_prompt_dropout(data):
    objective = build(prompt_dropout=0.5)
    empty = np.array([208, 209, START])
    one = {**sample(data), "empty_prompt_ids": empty}
    heads = []
    for i in range(40):
        def draw(index, purpose, i=i):
            return np.random.default_rng([i, index, *purpose.encode()])
        ids, *_ = objective.collate([one], draw, True)
        heads.append(np.array_equal(ids[0, :3], empty))
    assert 8 < sum(heads) < 32
    ids, *_ = objective.collate([one], no_draw, False)
    assert np.array_equal(ids[0, :PROMPT], one["prompt_ids"]), "no dropout in validation"
    with pytest.raises(UserError, match="prompt_dropout"):
        objective.collate([sample(data)], no_draw, True)


def test_data_of_another_model_is_refused(objective, data):
    wrong = {**sample(data), "large_codes": np.full((4, 3), 64)}
    with pytest.raises(UserError, match="64 codes"):
        objective.collate([wrong], no_draw, True)
    for prompt in ([200, 201], [352, START]):
        with pytest.raises(UserError, match="image start id 64 and ids below 352"):
            objective.collate([{**sample(data), "prompt_ids": np.array(prompt)}], no_draw, True)


def test_exports_the_decoder(objective):
    exported = {name: tensor.shape for name, tensor in objective.component_tensors().items()}
    assert exported == hf_names.language_tensors(CONFIG)


def test_without_progressive_the_large_codes_follow_a_prompt_of_one_grid(data):
    """The authors' first stage: raster order. The prompt is then the one that image to image uses, with one grid."""
    processor = Processor.from_pretrained(REPO)
    one = {**sample(data), "prompt_ids": np.array(processor.prompt_ids('a "cat"', 128, 96))}
    one_grid = processor.tokenizer.encode(
        processor.prompt_text('a "cat"', 128, 96, [(1, 1)]).partition(processor.image_end)[2]).ids
    raster = build(progressive=False)
    ids, positions, labels, weights = raster.row(one, one["prompt_ids"])
    large = one["large_codes"].reshape(-1)
    assert ids.tolist() == [*one_grid, *large]
    assert labels[len(one_grid) - 1:].tolist() == [*large, CONFIG.image_end_token_id]
    assert np.array_equal(positions, training_positions(len(one_grid), [(4, 3)]))
    assert weights.tolist() == [0.0] * (len(one_grid) - 1) + [1.0] * (len(large) + 1)
    with pytest.raises(UserError, match="sample cat: its prompt does not end in two grids"):
        raster.row(one, np.array([200, 201, START]))
