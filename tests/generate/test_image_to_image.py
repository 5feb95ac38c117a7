"""Image to image against the public pipeline's three runs, and what holds beyond them (fixture family `pipeline`)."""

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from mindglm.errors import UserError
from mindglm.generate.pipeline import Pipeline
from mindglm.generate.references import batch_cache
from mindglm.models.dit_decoder.conditions import upsample_codes
from tests import golden

TOLERANCE = 1e-5
RUN = golden.side_car("pipeline")["args"]
HEIGHT, WIDTH, STEPS, GUIDANCE = (RUN[k] for k in ("height", "width", "num_inference_steps", "guidance_scale"))
ROWS, COLUMNS = HEIGHT // 32, WIDTH // 32


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained(golden.REPO, hf_compatible=True, with_images=True)


@pytest.fixture(scope="module")
def own_way():
    return Pipeline.from_pretrained(golden.REPO, with_images=True)


@pytest.fixture(scope="module")
def arrays():
    return golden.fixture("pipeline")


@pytest.fixture(scope="module")
def sources(arrays):
    return [Image.fromarray(arrays[f"i2i.source{i}"]) for i in range(2)]


def generators(count):
    return [np.random.default_rng(i) for i in range(count)]


@pytest.mark.parametrize("name, which", [("i2i_one", [[0]]), ("i2i_two", [[0, 1]]), ("i2i_batch", [[0], [1]])])
def test_the_public_pipelines_runs(pipeline, arrays, sources, name, which):
    """Codes of the sources and of the picture exactly; latents after every step and the picture within 1e-5."""
    words = golden.side_car("pipeline")
    prompts = words["i2i_batch.prompts"] if name == "i2i_batch" else [words["i2i.prompt"]]
    references = pipeline.read_images([[sources[i] for i in own] for own in which], len(prompts))
    for i, own in enumerate(references):
        suffix = str(i) if name == "i2i_batch" else ""
        assert [[1, *(2 * side for side in image.codes.shape)] for image in own] == \
            arrays[f"{name}.source_grid{suffix}"].tolist()
        doubled = np.concatenate([upsample_codes(image.codes[None])[0] for image in own])
        np.testing.assert_array_equal(doubled, arrays[f"{name}.prior_token_image_ids{suffix}"])
    codes = pipeline.sample_codes(prompts, HEIGHT, WIDTH, generators(len(prompts)), references=references)
    np.testing.assert_array_equal(upsample_codes(codes), arrays[f"{name}.prior_token_ids"])
    after = []
    latents = pipeline.sample_latents(arrays["noise"][:len(prompts)], codes, pipeline.glyph_features(prompts), HEIGHT,
                                      WIDTH, STEPS, GUIDANCE, on_step=lambda i, x: after.append(x),
                                      references=references)
    assert len(after) == STEPS
    for i, x in enumerate(after):
        assert golden.rel_error(x, arrays[f"{name}.latents{i + 1}"]) < TOLERANCE, f"step {i + 1}"
    image = np.clip(pipeline.vae.decode(Tensor(latents)).asnumpy() / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    assert golden.rel_error(image, arrays[f"{name}.image"]) < TOLERANCE


def test_a_picture_does_not_depend_on_its_neighbours(own_way, arrays, sources):
    """One prompt with two sources beside one with a single source, and another picture of the first."""
    prompts = ["a cat", "board with \"MENU 12\"", "a cat"]
    references = own_way.read_images([sources, sources[:1], sources], 3)
    noise = arrays["noise"][[0, 1, 1]]
    codes = own_way.sample_codes(prompts, HEIGHT, WIDTH, generators(3), references=references)
    glyphs = own_way.glyph_features(prompts)
    together = own_way.sample_latents(noise, codes, glyphs, HEIGHT, WIDTH, 2, 1.5, references=references)
    alone = own_way.sample_latents(noise, codes, glyphs, HEIGHT, WIDTH, 2, 1.5, references=references, batch_size=1)
    assert golden.rel_error(together, alone) < TOLERANCE
    by_itself = own_way.sample_codes(prompts[1:2], HEIGHT, WIDTH, generators(1), references=references[1:2])
    np.testing.assert_array_equal(codes[1:2], by_itself)
    without = own_way.sample_latents(noise, codes, glyphs, HEIGHT, WIDTH, 2, 1.5)
    assert golden.rel_error(without, together) > 1e-3


def test_neighbours_with_the_same_references_share_the_cache(own_way, sources):
    one, two = own_way.read_images([sources[:1], sources[1:]], 2)
    samples = [batch_cache(own)[0][0][0].shape[0] for own in ([one] * 3, [one, one, two, two], [one, one, two])]
    assert samples == [1, 2, 3]


def test_a_picture_of_several_prompts_is_read_once(own_way, sources):
    first, second = own_way.read_images(sources, 2)
    assert first[0] is second[0] and first[1] is second[1] and first[0] is not first[1]


def test_call_draws_pictures_and_hands_the_codes_over(own_way, sources):
    seen = []

    def draw(**changed):
        call = {"images": sources[:1], "steps": 1, "num_images": 2, "on_codes": seen.append, **changed}
        return [np.asarray(image) for image in own_way("a 'LOGO'", HEIGHT, WIDTH, **call)]

    first = draw()
    assert [image.shape for image in first] == [(HEIGHT, WIDTH, 3)] * 2 and (first[0] != first[1]).any()
    assert len(seen) == 1 and seen[0].shape == (2, ROWS, COLUMNS)
    np.testing.assert_array_equal(draw(prior_codes=seen[0]), first)
    assert len(seen) == 1  # codes that were given are not handed back
    assert (draw(prior_codes=seen[0], images=sources[1:])[0] != first[0]).any()


def test_compiled_passes_draw_the_same(own_way, arrays, sources):
    compiled = Pipeline.from_pretrained(golden.REPO, compiled=True, with_images=True)
    latents = []
    for each in (own_way, compiled):
        references = each.read_images([sources, sources[:1]], 2)
        codes = each.sample_codes(["a cat", "a 'DOG'"], HEIGHT, WIDTH, generators(2), references=references)
        glyphs = each.glyph_features(["a cat", "a 'DOG'"])
        latents.append(each.sample_latents(arrays["noise"], codes, glyphs, HEIGHT, WIDTH, 2, 1.5,
                                           references=references))
    assert golden.rel_error(latents[1], latents[0]) < TOLERANCE


def test_prompts_without_images_beside_prompts_with_are_refused(own_way, sources):
    for images, message in (([sources, []], "at least one image"), ([sources], "source images for 1 prompts")):
        with pytest.raises(UserError, match=message):
            own_way(["a", "b"], HEIGHT, WIDTH, images=images)


def test_sizes_the_models_would_see_differently_are_refused(own_way):
    with pytest.raises(UserError, match="Resize it to 96 x 64"):
        own_way("a", HEIGHT, WIDTH, images=[Image.new("RGB", (96, 80))])
