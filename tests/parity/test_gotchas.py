"""The 40 gotchas of section 6 of the GLM-Image reference: each has a test that fails when it is got wrong.

Most are shown by making the mistake: the precision card's checks must then name the tensor where it departs. The rest
are tested directly here, or by the tests named in ELSEWHERE.
"""

import ast
import pathlib
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindglm import ops
from mindglm.errors import UserError
from mindglm.evaluate.precision import run_families
from mindglm.evaluate.precision.families import Family
from mindglm.evaluate.precision.subject import Subject, array
from mindglm.generate.ar_sampler import ArSampler
from mindglm.generate.flow_sampler import FlowCondition, sample_latents
from mindglm.generate.sampling import SamplingConfig
from mindglm.models.ar_generator.processor import check_source_size
from tests.golden import REPO
from tests.parity import mistakes
from tests.parity.subjects import BY_NAME, first_departure, fixture_of, subject

TESTS = pathlib.Path(__file__).parents[1]

# number, mistake (a function of mistakes.py), family, the tensor that the card names first
MADE = [
    (1, "time_not_minus_one", "pipeline", "t2i_given.latents1"),
    (1, "shifted_time", "pipeline", "t2i_given.latents1"),
    (1, "training_time_not_minus_one", "train_dit", "t2i.pred"),
    (2, "exponential_shift", "scheduler", "release.1024x1024x50.sigmas"),
    (3, "top_k_unset", "sampling", "release.filtered"),
    (3, "top_p_before_top_k", "sampling", "release.filtered"),
    (3, "crossing_token_dropped", "sampling", "release.filtered"),
    (4, "large_grid_first", "ar_t2i", "decode.position_ids"),
    (5, "interleaved_rotation", "ar_t2i", "prefill.cache0.k"),
    (5, "interleaved_sections", "ar_t2i", "decode.logits"),
    (6, "jump_by_area", "ar_i2i", "multi.prefill.position_ids"),
    (6, "time_moves_inside_an_image", "ar_i2i", "multi.prefill.position_ids"),
    (7, "decode_off_by_one", "ar_t2i", "decode.position_ids"),
    (8, "padding_counted", "ar_batch", "prefill.position_ids"),
    (8, "grids_located_with_padding", "ar_i2i", "(after batch.input_ids_with_codes)"),
    (9, "short_tables_end_in_zeros", "ar_batch", "decode.position_ids"),
    (10, "norms_by_their_names", "ar_t2i", "prefill.l0.post_self_attn_layernorm"),
    (10, "two_norms", "ar_t2i", "(after prefill.l0.self_attn.0)"),
    (11, "up_before_gate", "ar_t2i", "prefill.l0.mlp"),
    (11, "keys_without_bias", "ar_t2i", "prefill.cache0.k"),
    (13, "gelu_in_the_decoder", "ar_t2i", "prefill.l0.mlp"),
    (13, "tanh_gelu_in_the_tower", "vision_vq", "block0"),
    (13, "tanh_gelu_in_the_glyph_projector", "dit_t2i", "glyph_projector"),
    (13, "erf_gelu_in_the_feed_forward", "dit_t2i", "block0.0"),
    (13, "gelu_in_the_prior_projector", "dit_t2i", "prior_projector"),
    (13, "erf_gelu_in_the_glyph_encoder", "glyph", "enc.block0"),
    (14, "aligned_corners", "vision_vq", "pos_embed"),
    (15, "raw_codebook", "vision_vq", "distances0"),
    (15, "raw_features", "vision_vq", "distances0"),
    (16, "no_halving", "processor", "smart_resize_release"),
    (16, "rounding_half_up", "processor", "smart_resize_release"),
    (17, "class_defaults_of_the_processor", "processor", "image0.pixel_values"),
    (18, "preview_rounded", "processor", "target_shape"),
    (20, "halves_instead_of_alternating", "dit_t2i", "b0.norm1.0"),
    (20, "shift_before_scale_at_the_end", "dit_t2i", "norm_out"),
    (20, "silu_before_the_modulation", "dit_t2i", "b0.norm1.0"),
    (21, "size_before_crop", "dit_t2i", "temb"),
    (21, "sines_first", "dit_t2i", "time.sincos"),
    (22, "queries_and_keys_not_normed", "dit_t2i", "b0.attn1.0"),
    (22, "text_is_turned", "dit_t2i", "b0.attn1.0"),
    (23, "rotary_rows_twice_then_columns", "dit_t2i", "rope_cos"),
    (23, "interleaved_rotation", "dit_t2i", "b0.attn1.0"),
    (24, "dropped_codes_give_zero", "dit_t2i", "out.uncond"),
    (25, "patches_channels_last", "dit_t2i", "image_projector"),
    (25, "output_channels_last", "dit_t2i", "out.cond"),
    (27, "references_at_the_time_of_noise", "dit_i2i", "A.write_out0"),
    (28, "samples_tiled", "dit_i2i", "C.read_four"),
    (29, "scaling_factor", "vae", "normalized"),
    (29, "sampled_not_mode", "vae", "mode"),
    (29, "symmetric_padding", "vae", "enc.down0"),
    (31, "convolution_without_bias", "vae", "enc.conv_in"),
    (32, "scaled_scores", "glyph", "enc.block0"),
    (32, "one_sided_buckets", "glyph", "enc.position_bias"),
    (33, "no_parity_pad", "glyph", "embeds1"),
    (34, "strings_by_place", "glyph", "glyph_texts"),
    (35, "glyphs_padded_on_the_right", "glyph", "embeds_batch"),
]

# number -> tests that stand with what they test
ELSEWHERE = {
    3: ["generate/test_sampling.py::test_generation_config_is_read"],  # the library's top-k of 50
    4: ["generate/test_ar_sampler.py::test_codes_of_the_public_pipeline"],  # the preview is cut off in front
    7: ["generate/test_ar_sampler.py::test_codes_of_the_public_pipeline"],
    12: ["models/test_ar_generator.py::test_names_of_the_release"],
    19: ["models/test_dit_decoder.py::test_config_without_a_field_is_refused",
         "models/test_dit_decoder.py::test_released_names_and_size"],
    26: ["models/test_dit_references.py::test_read_and_skip"],
    29: ["models/test_vae.py::test_released_names_and_size"],  # a resnet more in every level of the decoder
}


@pytest.mark.parametrize("mistake, family, tensor", [entry[1:] for entry in MADE],
                         ids=[f"{number}-{name}-{family}" for number, name, family, _ in MADE])
def test_mistake_is_named_by_the_card(mistake, family, tensor, monkeypatch):
    checked = BY_NAME[family]
    if family == "pipeline":  # its decoder half: sampling hundreds of codes first would change nothing
        checked = Family("pipeline", run_families.pictures_of_given_codes)
    getattr(mistakes, mistake)(monkeypatch)
    assert first_departure(checked) == tensor


def test_gotcha_12_head_covers_the_image_ids_alone_and_is_not_tied():
    model, text = subject().ar, subject().ar_config.text_config
    head, table = model.lm_head.weight, model.model.language_model.embed_tokens.weight
    assert head.shape[0] == text.vision_vocab_size < text.vocab_size == table.shape[0]
    assert not np.allclose(array(head), array(table)[: head.shape[0]])


def test_gotcha_26_the_unconditional_pass_has_no_references(monkeypatch):
    from PIL import Image

    own, fixture = subject().pipeline, fixture_of("pipeline")
    references = own.read_images([Image.fromarray(fixture["i2i.source0"])], 1)
    codes = np.zeros((1, 2, 3), np.int32)
    given, withheld = own.conditions(codes, own.glyph_features([""]), references=references)
    assert given.references is not None and withheld.references is None and withheld.prior_drop_BN.all()


def test_gotcha_30_every_norm_has_its_own_epsilon(monkeypatch):
    seen = {}
    for name in ("layer_norm", "group_norm", "rms_norm"):
        def spy(*arguments, name=name, right=getattr(ops, name)):
            seen.setdefault(name, set()).add(arguments[-1])
            return right(*arguments)

        monkeypatch.setattr(ops, name, spy)
    expected = {"ar_batch": {"rms_norm": {subject().ar_config.text_config.rms_norm_eps}},
                "vision_vq": {"layer_norm": {subject().ar_config.vision_config.layer_norm_eps}},
                "dit_i2i": {"layer_norm": {1e-5}}, "vae": {"group_norm": {1e-6}}, "glyph": {"rms_norm": {1e-6}}}
    for family, epsilons in expected.items():
        seen.clear()
        assert first_departure(BY_NAME[family]) is None
        assert seen == epsilons, family


def test_gotcha_36_guidance_and_steps_are_float32_even_when_predictions_are_half():
    predicted = np.random.default_rng(0).standard_normal((2, 1, 2, 4, 4)).astype(np.float32)
    predicted = [Tensor(p).astype(ms.float16) for p in predicted]
    calls = iter(predicted)
    condition = FlowCondition(np.zeros((1, 1, 4), np.float32), None, np.zeros((1, 4), np.int32),
                              np.zeros((1, 4), bool))
    noise = np.random.default_rng(1).standard_normal((1, 2, 4, 4)).astype(np.float32)
    scheduler = subject().scheduler
    found = sample_latents(lambda *arguments: next(calls), scheduler, noise, condition, condition, 32, 32, 1, 3.0)
    given, withheld = (array(p) for p in predicted)
    sigma = scheduler.tables(4, 4, 1)[1]
    expected = noise + (sigma[1] - sigma[0]) * (withheld + np.float32(3) * (given - withheld))
    assert found.dtype == np.float32 and np.abs(found - expected).max() <= 1e-6
    rounded = (given.astype(np.float16) - withheld.astype(np.float16)).astype(np.float32)
    assert np.abs(noise - (withheld + np.float32(3) * rounded) - expected).max() > 1e-5, "the case tells them apart"


def test_gotcha_37_decoder_rotates_in_the_models_dtype_and_the_dit_in_float32(monkeypatch):
    tables = []

    def spy(x, cos, sin, right=ops.rotate_half):
        tables.append((x.dtype, cos.dtype, sin.dtype))
        return right(x, cos, sin)

    half = Subject(REPO, "fp16")
    monkeypatch.setattr(ops, "rotate_half", spy)
    half.ar(half.ids([[90, 91, 64]]), half.ids(np.tile(np.arange(3), (3, 1, 1))))
    assert set(tables) == {(ms.float16,) * 3}
    tables.clear()
    assert first_departure(BY_NAME["dit_i2i"]) is None
    c = half.dit_config
    half.dit(half.floats(np.ones((1, c.in_channels, 4, 4))), half.floats(np.ones((1, 2, c.text_embed_dim))),
             half.ids(np.zeros((1, 4))), half.bools(np.zeros((1, 4))), half.numbers([5]), half.numbers([[32, 32]]),
             half.numbers([[0, 0]]))
    assert {cos for _, cos, _ in tables} == {ms.float32} and ms.float16 in {x for x, _, _ in tables}


def test_gotcha_38_no_state_is_left_between_prompts():
    model = subject().ar
    grids = {"large": (2, 2), "preview": (1, 3)}
    prompts = [[90, 91, 92, 93, 94, 64], [95, 64]]
    sampling = SamplingConfig(do_sample=False)
    used = ArSampler(model, sampling)
    used.generate(prompts[:1], (3, 2), (2, 2), [np.random.default_rng(0)])
    again = used.generate(prompts[1:], **grids, generators=[np.random.default_rng(0)])
    fresh = ArSampler(model, sampling).generate(prompts[1:], **grids, generators=[np.random.default_rng(0)])
    for a, b in zip(again, fresh, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gotcha_39_source_sizes_that_the_two_models_read_differently_are_refused_early():
    settings = subject().processor.pixels
    import dataclasses
    released = dataclasses.replace(settings, min_pixels=512**2, max_pixels=2048**2)
    assert check_source_size(1024, 1024, released) == (32, 32) and check_source_size(512, 2048, released) == (16, 64)
    for height, width in ((1040, 1024), (1024, 1040), (480, 512), (4096, 2048)):
        with pytest.raises(UserError, match="expected sides that are multiples of 32"):
            check_source_size(height, width, released)


def test_gotcha_40_the_librarys_broken_label_loss_and_text_mask_are_not_imitated():
    fixture, dit = fixture_of("dit_t2i"), subject().dit
    from mindglm.evaluate.precision.picture_families import dit_inputs

    mask = fixture["quirk.attention_mask"].astype(bool)
    masked = array(dit(*dit_inputs(subject(), fixture, "in."), Tensor(mask)))
    assert np.abs(masked - fixture["quirk.masked_out"]).max() > 1e-3
    cut = dit_inputs(subject(), fixture, "in.")
    hidden = [cut[0][1:], cut[1][1:, 2:], *(x[1:] for x in cut[2:])]  # row 1 hides its first two glyph tokens
    np.testing.assert_allclose(masked[1:], array(dit(*hidden)), rtol=0, atol=1e-5)
    logits = subject().ar(Tensor(np.array([[90, 64]], np.int32)), Tensor(np.zeros((3, 1, 2), np.int32)))
    assert logits.shape[-1] == subject().ar_config.text_config.vision_vocab_size, "labels count the head's own classes"


def test_every_gotcha_has_its_test():
    here = {int(n) for n in re.findall(r"def test_gotcha_(\d+)_", pathlib.Path(__file__).read_text())}
    assert {entry[0] for entry in MADE} | here | set(ELSEWHERE) == set(range(1, 41))
    for named in {name for names in ELSEWHERE.values() for name in names}:
        file, function = named.split("::")
        tree = ast.parse((TESTS / file).read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, named


