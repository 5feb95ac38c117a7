"""Logit filters against the public ones, and the honesty of the draw."""

import json

import numpy as np
import pytest

from mindglm.errors import UserError
from mindglm.generate.sampling import SamplingConfig, choose, filter_logits
from tests import golden


@pytest.mark.parametrize("name", ["release", "t1_k0_p05", "t07_k5_p1"])
def test_filters_agree_with_the_public_ones(name):
    arrays = golden.fixture("sampling")
    temperature, top_k, top_p = golden.side_car("sampling")[f"{name}.params"]
    ours = filter_logits(arrays["logits"], SamplingConfig(True, temperature, int(top_k), top_p))
    reference = arrays[f"{name}.filtered"]
    # Rows 1 and 2 hold ties: which of the equal ids top-p removes is the unstable sort's own business.
    np.testing.assert_allclose(np.sort(ours, -1), np.sort(reference, -1), rtol=1e-6)
    np.testing.assert_allclose(ours[[0, 3, 4, 5]], reference[[0, 3, 4, 5]], rtol=1e-6)


def test_draws_follow_the_filtered_probabilities():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    config = SamplingConfig(True, 1.0, 0, 0.9)
    rng = np.random.default_rng(0)
    counts = np.bincount([choose(logits, config, [rng], None)[0] for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)
    assert counts[3] == 0


def test_ids_past_the_codes_are_never_chosen_inside_a_grid():
    logits = np.zeros((2, 6), np.float32)
    logits[:, 4:] = 50.0
    generators = [np.random.default_rng(i) for i in range(2)]
    for _ in range(20):
        assert (choose(logits, SamplingConfig(), generators, 4) < 4).all()
    assert (choose(logits, SamplingConfig(), generators, None) >= 4).all()


def test_a_row_does_not_depend_on_its_neighbours():
    logits = np.random.default_rng(3).normal(size=(3, 30)).astype(np.float32)
    together = choose(logits, SamplingConfig(), [np.random.default_rng(i) for i in range(3)], 30)
    alone = choose(logits[2:], SamplingConfig(), [np.random.default_rng(2)], 30)
    assert together[2] == alone[0]


def test_no_sampling_is_the_likeliest_allowed_id():
    logits = np.array([[1.0, 5.0, 3.0, 9.0]], np.float32)
    config = SamplingConfig(do_sample=False, suppress_tokens=(1,))
    assert choose(logits, config, [np.random.default_rng(0)], 3)[0] == 2


def test_broken_weights_are_named():
    with pytest.raises(UserError, match="no finite logit"):
        choose(np.full((1, 4), np.nan, np.float32), SamplingConfig(), [np.random.default_rng(0)], 4)


def test_generation_config_is_read(tmp_path):
    config = SamplingConfig.from_pretrained(golden.REPO)
    assert config == SamplingConfig(True, 0.9, 1, 0.75, tuple(range(64, 80)))
    assert SamplingConfig.from_hf({"do_sample": True, "temperature": 0.9, "top_p": 0.75}).top_k == 50
    assert SamplingConfig.from_pretrained(tmp_path) == SamplingConfig(True, 0.9, 50, 0.75)


@pytest.mark.parametrize("values, message", [({"repetition_penalty": 1.2}, "repetition_penalty"),
                                             ({"temperature": 0.0}, "temperature"), ({"top_p": 1.5}, "top_p")])
def test_what_cannot_be_honoured_is_refused(values, message, tmp_path):
    folder = tmp_path / "vision_language_encoder"
    folder.mkdir()
    (folder / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        SamplingConfig.from_pretrained(tmp_path)
