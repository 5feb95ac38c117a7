"""The decoder: compiled, configuration, names, odd structures; its numbers are compared in tests/parity."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm import ops
from mindglm.checkpoint.released import component_config, component_header
from mindglm.errors import UserError
from mindglm.models.ar_generator import flops, hf_names, positions
from mindglm.models.ar_generator.config import from_hf, to_hf
from mindglm.models.ar_generator.model import ArGenerator
from tests.golden import REPO, fixture, load, rel_error

TOLERANCE = 1e-5
JSON = component_config(REPO, hf_names.COMPONENT)
CONFIG = from_hf(JSON)
LARGE, PREVIEW = (4, 3), (3, 2)

RELEASED = {
    **JSON, "image_token_id": 167855, "image_start_token_id": 16384, "image_end_token_id": 16385,
    "text_config": {
        "vocab_size": 168064, "vision_vocab_size": 16512, "hidden_size": 4096, "intermediate_size": 13696,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "pad_token_id": 167841, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5,
                            "mrope_section": [8, 12, 12]}},
    "vision_config": {"depth": 40, "hidden_size": 1536, "num_heads": 16, "intermediate_size": 6144, "image_size": 2048},
    "vq_config": {"embed_dim": 2048},
}


def ids(array):
    return Tensor(array.astype(np.int32))


@pytest.fixture(scope="module")
def model():
    return load(ArGenerator(CONFIG), hf_names.COMPONENT)


@pytest.fixture(scope="module")
def data():
    return fixture("ar_t2i")


def test_teacher_forcing_in_one_graph(model, data):
    """The training forward, eagerly and compiled as a whole, with right padding that must change nothing."""
    length = data["teacher.input_ids"].shape[1]
    padded = np.pad(data["teacher.input_ids"], ((0, 0), (0, 10)))
    at = positions.training_positions(data["in.input_ids"].shape[1], [LARGE, PREVIEW])
    assert np.array_equal(at[:, None], data["teacher.position_ids"])
    at = np.pad(at[:, None], ((0, 0), (0, 0), (0, 10)))

    @ms.jit
    def compiled(input_ids, position_ids):
        return model(input_ids, position_ids)

    for forward in (model, compiled):
        logits = forward(ids(padded), ids(at))
        assert rel_error(logits[:, :length], data["teacher.logits"]) <= TOLERANCE


def test_config_round_trip():
    assert from_hf(to_hf(CONFIG)) == CONFIG
    assert to_hf(CONFIG) == {**JSON, "transformers_version": to_hf(CONFIG)["transformers_version"]}


@pytest.mark.parametrize("section, field, value, word", [
    ("text_config", "hidden_act", "gelu", "hidden_act"),
    ("text_config", "num_attention_heads", 3, "num_attention_heads"),
    ("vision_config", "num_heads", 5, "num_heads"),
    ("vq_config", "latent_channels", 7, "latent_channels"),
    ("text_config", "rope_parameters", {"mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}, "mrope_section"),
])
def test_config_refuses_what_cannot_be_built(section, field, value, word):
    with pytest.raises(UserError, match=word):
        from_hf({**JSON, section: {**JSON[section], field: value}})


def test_config_names_a_missing_section_and_field():
    with pytest.raises(UserError, match="vq_config"):
        from_hf({k: v for k, v in JSON.items() if k != "vq_config"})
    with pytest.raises(UserError, match="vision_vocab_size"):
        text = {k: v for k, v in JSON["text_config"].items() if k != "vision_vocab_size"}
        from_hf({**JSON, "text_config": text})


def test_names_are_those_of_the_tiny_checkpoint():
    stored = {name: shape for name, (_, shape) in component_header(REPO, hf_names.COMPONENT).items()}
    assert hf_names.tensors(CONFIG) == stored
    built = {p.name: p.shape for p in ArGenerator(CONFIG).get_parameters()}
    assert built == hf_names.language_tensors(CONFIG)


def test_names_of_the_release():
    """Counts and sizes published for the 9B generator, without allocating it."""
    named = hf_names.tensors(from_hf(RELEASED))
    assert len(named) == 1011
    assert sum(int(np.prod(shape)) for shape in named.values()) == 10_114_245_632
    assert named["model.language_model.layers.39.mlp.gate_up_proj.weight"] == (27392, 4096)
    assert named["model.visual.blocks.39.attn.qkv.weight"] == (4608, 1536)


def test_initial_values_depend_on_seed_and_name_only():
    one, two, other = (ArGenerator(CONFIG) for _ in range(3))
    ops.init_parameters(one, 3), ops.init_parameters(two, 3), ops.init_parameters(other, 4)
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    a, b, c = (dict(m.parameters_and_names())[name].asnumpy() for m in (one, two, other))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert abs(a.std() / 0.02 - 1) < 0.05
    assert np.all(one.model.language_model.norm.weight.asnumpy() == 1)


def test_flops_of_a_long_sequence():
    """A dense decoder costs about 2 x weights a token; the embedding computes nothing."""
    config = from_hf(RELEASED)
    weights = sum(int(np.prod(shape)) for name, shape in hf_names.language_tensors(config).items()
                  if len(shape) == 2 and "embed_tokens" not in name)
    per_token = flops.forward_flops(config, 1, 1) - 2 * 40 * 2 * 4096
    assert per_token == 2 * weights
    assert flops.train_flops(config, 2, 1024) == 3 * flops.forward_flops(config, 2, 1024)
    assert flops.decode_flops(config, 1, 1) == flops.forward_flops(config, 1, 1)
    assert flops.vision_forward_flops(config, 2, 4, 4) == 2 * flops.vision_forward_flops(config, 1, 4, 4)


def test_odd_structures_run():
    """One key/value head, full rotary, a head width that is no power of two."""
    text = dataclasses.replace(CONFIG.text_config, hidden_size=120, num_attention_heads=5, num_key_value_heads=1,
                               partial_rotary_factor=1.0, mrope_section=(5, 4, 3), num_hidden_layers=1)
    model = ArGenerator(dataclasses.replace(CONFIG, text_config=text))
    ops.init_parameters(model, 0)
    at = positions.training_positions(5, [(2, 2), (1, 2)])[:, None]
    tokens = np.arange(at.shape[-1])[None]
    whole = model(ids(tokens), ids(at)).asnumpy()
    last, cache = model.prefill(ids(tokens[:, :-1]), ids(at[:, :, :-1]))
    step, _ = model.decode(ids(tokens[:, -1:]), ids(at[:, :, -1:]), cache)
    assert rel_error(last, whole[:, -2]) <= TOLERANCE and rel_error(step, whole[:, -1]) <= TOLERANCE
