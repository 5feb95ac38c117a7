"""The DiT decoder: text mask, compilation, names, fresh weights; its numbers are compared in tests/parity."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm import ops
from mindglm.errors import UserError
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder import flops, hf_names
from mindglm.models.dit_decoder.model import DiTDecoder, rotary_tables
from mindglm.recipe.models import DiTConfig
from tests.golden import REPO, fixture, load, rel_error

TOLERANCE = 1e-5

RELEASED = DiTConfig(
    num_layers=30, num_attention_heads=32, attention_head_dim=128, in_channels=16, out_channels=16, text_embed_dim=1472,
    time_embed_dim=512, condition_dim=256, prior_vq_quantizer_codebook_size=16384,
)


def released_json():
    return json.loads((REPO / "transformer" / "config.json").read_text())


@pytest.fixture(scope="module")
def dit():
    return load(DiTDecoder(dit_config.from_hf(released_json())), "transformer")


@pytest.fixture(scope="module")
def golden():
    return fixture("dit_t2i")


def inputs(golden, prefix="in.", drop=None, **replaced):
    """Arguments of the Cell from a fixture's inputs; `replaced` gives other arrays by fixture name, `drop` a mask."""
    names = ("hidden_states", "encoder_hidden_states", "prior_token_id", "timestep", "target_size", "crop_coords")
    found = {name: replaced.get(name, golden[prefix + name]) for name in names}
    ids = found["prior_token_id"].astype(np.int32)
    drop = np.zeros(ids.shape, bool) if drop is None else drop
    return [Tensor(a) for a in (found["hidden_states"], found["encoder_hidden_states"], ids, drop, found["timestep"],
                                found["target_size"], found["crop_coords"])]


def test_padded_text_is_not_seen(dit, golden):
    glyph = golden["in.encoder_hidden_states"]
    noise = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(np.float32)
    mask = Tensor(np.arange(8)[None] < 5).tile((2, 1))
    padded = inputs(golden, encoder_hidden_states=np.concatenate([glyph, noise], 1))
    assert rel_error(dit(*padded, mask), golden["out.cond"]) < TOLERANCE
    assert rel_error(dit(*padded), golden["out.cond"]) > 1e-3


def test_compiles_to_one_graph(dit, golden):
    assert rel_error(ms.jit(dit)(*inputs(golden)), golden["out.cond"]) < TOLERANCE


def test_cell_has_exactly_the_names_and_shapes_of_the_list(dit):
    assert {p.name: p.shape for p in dit.get_parameters()} == hf_names.tensors(dit.config)


def test_released_names_and_size():
    found = hf_names.tensors(RELEASED)
    assert len(found) == 443
    assert sum(int(np.prod(shape)) for shape in found.values()) == 6_926_882_880
    assert found["transformer_blocks.29.norm1.linear.weight"] == (49152, 512)


def test_fresh_weights_are_drawn_by_name(dit):
    first, second = DiTDecoder(dit.config), DiTDecoder(dit.config)
    ops.init_parameters(first, 5)
    ops.init_parameters(second, 5)
    for a, b in zip(first.get_parameters(), second.get_parameters()):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())
    drawn = first.transformer_blocks[0].attn1.to_q.weight.asnumpy()
    assert 0.8 < drawn.std() * np.sqrt(drawn.shape[1]) < 1.2


def test_fresh_blocks_are_the_identity(dit, golden):
    fresh = DiTDecoder(dit.config)
    ops.init_parameters(fresh, 5)
    img, txt, temb = (Tensor(golden[name]) for name in ("image_projector", "glyph_projector", "temb"))
    cos, sin = rotary_tables(4, 6, 5, 16)
    for ours, given in zip(fresh.transformer_blocks[0](img, txt, temb, cos, sin, None)[:2], (img, txt)):
        np.testing.assert_array_equal(ours.asnumpy(), given.asnumpy())


def test_config_round_trip():
    given = released_json()
    config = dit_config.from_hf(given)
    written = dit_config.to_hf(config)
    assert {**written, "_diffusers_version": given["_diffusers_version"]} == given
    assert dit_config.from_hf(written) == config


def test_config_without_a_field_is_refused():
    with pytest.raises(UserError, match="condition_dim"):
        dit_config.from_hf({k: v for k, v in released_json().items() if k != "condition_dim"})


def test_flops_are_twice_the_weights_a_token_meets():
    names = hf_names.tensors(RELEASED)
    image_tokens, text_tokens = 4096, 10
    expected = 0
    for name, shape in names.items():
        if len(shape) != 2 or name == "prior_token_embedding.weight":
            continue
        if "attn1" in name or ".ff." in name:
            uses = image_tokens + text_tokens
        elif name.startswith("glyph_projector"):
            uses = text_tokens
        elif name.startswith(("image_projector", "prior_projector", "proj_out")):
            uses = image_tokens
        else:
            uses = 1
        expected += 2 * uses * shape[0] * shape[1]
    expected += 30 * 2 * 2 * (image_tokens + text_tokens) ** 2 * 4096
    assert flops.forward_flops(RELEASED, image_tokens, text_tokens) == expected
