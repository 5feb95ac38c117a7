"""The glyph encoder's text handling, names and configuration; its numbers are compared in tests/parity."""

import json

import numpy as np
import pytest

from mindglm.errors import UserError
from mindglm.models.glyph_encoder import config as glyph_config
from mindglm.models.glyph_encoder import flops, hf_names, text
from mindglm.models.glyph_encoder.model import GlyphEncoder
from mindglm.recipe.models import GlyphConfig
from tests.golden import REPO, load, side_car

RELEASED = GlyphConfig(d_model=1472, d_kv=64, d_ff=3584, num_heads=6, num_layers=12)


def released_json():
    return json.loads((REPO / "text_encoder" / "config.json").read_text())


@pytest.fixture(scope="module")
def encoder():
    return load(GlyphEncoder(glyph_config.from_hf(released_json())), "text_encoder")


def test_glyph_strings_of_all_quotes():
    strings = side_car("glyph")
    assert [text.glyph_strings(prompt) for prompt in strings["prompts"]] == strings["glyph_texts"]
    assert text.glyph_strings("'' and 'x'") == ["", "x"]


@pytest.mark.parametrize("string, ids", [
    ("", [1]),
    ("ab", [100, 101, 1]),
    ("\u00e9\u4f60", [198, 172, 231, 192, 163, 1]),
    ("a </s> b", [100, 1, 101, 1]),
    ("x</s>", [123, 1]),
    ("<pad>q", [0, 116, 1]),
    ("<unk>  z", [2, 125, 1]),
    ("a <extra_id_3>b", [100, 35, 262, 101, 1]),
    ("<extra_id_125>", [63, 104, 123, 119, 117, 100, 98, 108, 103, 98, 52, 53, 56, 65, 1]),
    (" l ", [35, 111, 35, 1]),
])
def test_byte_ids_as_the_public_tokenizer(string, ids):
    assert text.byte_ids(string) == ids


def test_byte_ids_cut_keeps_the_end():
    assert text.byte_ids("abcdefghij</s>", max_length=4) == [100, 101, 102, 1]
    assert text.byte_ids("abc", max_length=4) == [100, 101, 102, 1]


def test_cell_has_exactly_the_names_and_shapes_of_the_list(encoder):
    assert {p.name: p.shape for p in encoder.get_parameters()} == hf_names.tensors(encoder.config)


def test_released_names_and_size():
    found = hf_names.tensors(RELEASED)
    assert len(found) == 111
    assert sum(int(np.prod(shape)) for shape in found.values()) == 217_657_472


def test_config_round_trip():
    given = released_json()
    config = glyph_config.from_hf(given)
    written = glyph_config.to_hf(config)
    assert {**written, "transformers_version": given["transformers_version"]} == given
    assert glyph_config.from_hf(written) == config


@pytest.mark.parametrize("change", [{"feed_forward_proj": "relu"}, {"d_kv": None}])
def test_config_of_another_structure_is_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        glyph_config.from_hf({**released_json(), **change})


def test_flops_are_twice_the_weights_and_the_scores():
    blocks = {n: s for n, s in hf_names.tensors(RELEASED).items() if n.startswith("encoder.block") and "bias" not in n}
    weights = sum(int(np.prod(shape)) for shape in blocks.values() if len(shape) == 2)
    scores = 12 * 6 * (2 * 10 * 10 * 64)
    assert flops.forward_flops(RELEASED, 10) == 2 * (10 * weights + scores)
