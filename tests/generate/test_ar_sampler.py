"""Sampling of code grids: the public pipeline's codes, and independence of padding, neighbours and compilation."""

import numpy as np
import pytest
from mindspore import Tensor

from mindglm.errors import UserError
from mindglm.generate.ar_sampler import ArSampler, _PlainStep, pad_prompts
from mindglm.generate.ar_step import DecodeStep, Weights
from mindglm.models.dit_decoder.conditions import upsample_codes
from mindglm.generate.sampling import SamplingConfig
from mindglm.models.ar_generator.config import from_hf
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.ar_generator.processor import Processor
from tests import golden

PREVIEW, LARGE = (2, 3), (2, 2)  # small grids keep the free-running tests quick; the model takes any


@pytest.fixture(scope="module")
def model():
    from mindglm.checkpoint.released import component_config

    return golden.load(ArGenerator(from_hf(component_config(golden.REPO, "vision_language_encoder"))),
                       "vision_language_encoder")


def _generators(*keys):
    return [np.random.default_rng(key) for key in keys]


def test_codes_of_the_public_pipeline(model):
    processor, arrays = Processor.from_pretrained(golden.REPO), golden.fixture("pipeline")
    prompts = golden.side_car("pipeline")["t2i_batch.prompts"]  # two lengths: left padding
    ids = [processor.prompt_ids(prompt, 64, 96) for prompt in prompts]
    sampler = ArSampler(model, SamplingConfig.from_pretrained(golden.REPO), compiled=True)
    large, preview = processor.target_grids(64, 96)
    preview_codes, large_codes = sampler.generate(ids, large, preview, _generators(0, 1))
    assert preview_codes.shape == (2, *preview)
    np.testing.assert_array_equal(upsample_codes(large_codes), arrays["t2i_batch.prior_token_ids"])


def test_compiled_padded_and_batched_draws_are_the_plain_ones(model):
    prompts, sampling = [[90, 91, 64], [95, 90, 93, 94, 64]], SamplingConfig(True, 0.9, 0, 1.0)
    plain = ArSampler(model, sampling)
    together = plain.generate(prompts, LARGE, PREVIEW, _generators(1, 2))
    again = ArSampler(model, sampling, compiled=True).generate(prompts, LARGE, PREVIEW, _generators(1, 2))
    alone = plain.generate(prompts[:1], LARGE, PREVIEW, _generators(1))
    for a, b, c in zip(together, again, alone):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[:1], c)
    other = plain.generate(prompts, LARGE, PREVIEW, _generators(3, 2))
    assert (other[0][0] != together[0][0]).any()
    np.testing.assert_array_equal(other[0][1], together[0][1])


def test_the_compiled_step_follows_the_weights(model):
    sampler = ArSampler(model, SamplingConfig(do_sample=False), compiled=True)
    before = sampler.generate([[90, 91, 64]], LARGE, PREVIEW, _generators(1))
    kept = model.lm_head.weight.asnumpy().copy()
    model.lm_head.weight.set_data(Tensor(np.roll(kept, 1, 0)))
    try:
        after = sampler.generate([[90, 91, 64]], LARGE, PREVIEW, _generators(1))
        expected = ArSampler(model, sampler.sampling).generate([[90, 91, 64]], LARGE, PREVIEW, _generators(1))
    finally:
        model.lm_head.weight.set_data(Tensor(kept))
    np.testing.assert_array_equal(after[0], expected[0])
    assert (after[0] != before[0]).any()


def test_logits_of_the_compiled_step_are_the_models(model):
    rng, valid = np.random.default_rng(0), np.array([[True] * 5, [False, False, True, True, True]])
    ids, positions = rng.integers(0, 64, (2, 5), np.int32), np.broadcast_to(np.arange(5, dtype=np.int32), (3, 2, 5))
    _, cache = model.prefill(Tensor(ids), Tensor(positions.copy()), Tensor(valid))
    later = rng.integers(0, 50, (3, 2, 4), np.int32)
    plain, step = _PlainStep(model, cache, valid, later, 32), DecodeStep(Weights(model), 2, 32)
    step.begin(cache, valid, later)
    for index in range(4):
        codes = rng.integers(0, 64, 2, np.int32)
        expected = plain.feed(codes, index)
        np.testing.assert_allclose(step.feed(codes, index), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_ids_past_the_codes_are_refused_only_where_the_model_is_let_alone(model):
    logits_first = SamplingConfig(do_sample=False, suppress_tokens=tuple(range(64)))
    with pytest.raises(UserError, match="no image code"):
        ArSampler(model, logits_first).generate([[90, 64]], LARGE, PREVIEW, _generators(0), hf_compatible=True)


def test_prompts_are_padded_on_the_left():
    ids, valid = pad_prompts([[1, 2, 3], [4]], 9)
    np.testing.assert_array_equal(ids, [[1, 2, 3], [9, 9, 4]])
    np.testing.assert_array_equal(valid, [[True] * 3, [False, False, True]])
