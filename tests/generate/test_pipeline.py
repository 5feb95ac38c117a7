"""Text to image against the public pipeline's numbers, and what it promises beyond it."""

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from mindglm import generate
from mindglm.errors import UserError
from mindglm.models.dit_decoder.conditions import pad_glyphs, upsample_codes
from mindglm.generate.pipeline import Pipeline, pixels_of
from tests import golden

HEIGHT, WIDTH, STEPS = 64, 96, 4


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained(golden.REPO, hf_compatible=True)


@pytest.fixture
def own_way(pipeline):
    """The same components without the public pipeline's quirks."""
    pipeline.hf_compatible = False
    yield pipeline
    pipeline.hf_compatible = True


def _large_codes(prior_BN):
    return prior_BN.reshape(-1, HEIGHT // 16, WIDTH // 16)[:, ::2, ::2]


@pytest.mark.parametrize("name, prompts, scale", [("t2i", "t2i.prompt", 1.5), ("t2i_nocfg", "t2i.prompt", 1.0),
                                                  ("t2i_batch", "t2i_batch.prompts", 1.5)])
def test_latents_and_picture_of_the_public_pipeline(pipeline, name, prompts, scale):
    arrays = golden.fixture("pipeline")
    prompts = np.atleast_1d(golden.side_car("pipeline")[prompts]).tolist()
    codes = _large_codes(arrays["t2i_batch.prior_token_ids" if "batch" in name else "t2i.prior_token_ids"])
    after = []
    latents = pipeline.sample_latents(arrays["noise"][:len(prompts)], codes, pipeline.glyph_features(prompts), HEIGHT,
                                      WIDTH, STEPS, scale, on_step=lambda i, x: after.append(x))
    assert len(after) == STEPS
    for i, x in enumerate(after):
        assert golden.rel_error(x, arrays[f"{name}.latents{i + 1}"]) < 1e-5, f"step {i + 1}"
    decoded = pipeline.vae.decode(Tensor(latents)).asnumpy()
    image = np.clip(decoded / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    assert golden.rel_error(image, arrays[f"{name}.image"]) < 1e-5
    np.testing.assert_allclose(pixels_of(decoded), 255 * arrays[f"{name}.image"], atol=0.51)


def test_glyphs_of_the_public_pipeline(pipeline):
    arrays = golden.fixture("pipeline")
    found = pipeline.glyph_features([golden.side_car("pipeline")["t2i.prompt"], ""])
    assert golden.rel_error(found[0][None], arrays["t2i.prompt_embeds"]) < 1e-5
    assert golden.rel_error(found[1][None], arrays["t2i.negative_embeds"]) < 1e-5


def test_a_picture_does_not_depend_on_its_neighbours(own_way):
    arrays = golden.fixture("pipeline")
    prompts, codes = golden.side_car("pipeline")["t2i_batch.prompts"], _large_codes(arrays["t2i_batch.prior_token_ids"])
    glyphs = own_way.glyph_features(prompts)
    assert len(glyphs[0]) != len(glyphs[1])
    together = own_way.sample_latents(arrays["noise"], codes, glyphs, HEIGHT, WIDTH, 2, 1.5)
    alone = own_way.sample_latents(arrays["noise"], codes, glyphs, HEIGHT, WIDTH, 2, 1.5, batch_size=1)
    assert golden.rel_error(together, alone) < 1e-5


def test_same_seed_same_picture_and_every_picture_its_own_noise(own_way):
    codes = _large_codes(golden.fixture("pipeline")["t2i.prior_token_ids"]).repeat(2, 0)

    def draw(seed):
        return [np.asarray(image) for image in own_way("a cat", HEIGHT, WIDTH, steps=2, seed=seed, num_images=2,
                                                       prior_codes=codes)]

    first, again, other = draw(5), draw(5), draw(6)
    assert first[0].shape == (HEIGHT, WIDTH, 3) and len(first) == 2
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any() and (first[0] != other[0]).any()


def test_withheld_codes_are_not_read(own_way):
    arrays = golden.fixture("pipeline")
    codes = _large_codes(arrays["t2i_batch.prior_token_ids"])
    glyphs = own_way.glyph_features(["", ""])

    def draw(codes):
        return own_way.sample_latents(arrays["noise"], codes, glyphs, HEIGHT, WIDTH, 1, 1.5, drop=[True, False])

    a, b = draw(codes), draw((codes + 1) % 64)
    assert golden.rel_error(a[0], b[0]) < 1e-6 and golden.rel_error(a[1], b[1]) > 1e-4


def test_command_draws_a_grid(tmp_path, capsys):
    output = tmp_path / "out" / "grid.png"
    generate.cli_run(golden.REPO, ["a cat", "a 'DOG'"], HEIGHT, WIDTH, 1, 1.5, 0, 2, output)
    assert Image.open(output).size == (2 * WIDTH + 2, 2 * HEIGHT + 2)
    assert "4 pictures" in capsys.readouterr().out


def test_components_of_different_models_are_refused(tmp_path):
    import json
    import shutil

    model = shutil.copytree(golden.REPO, tmp_path / "model")
    path = model / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "text_embed_dim": 24}))
    with pytest.raises(UserError, match="glyph width"):
        Pipeline.from_pretrained(model)
    path.write_text(json.dumps({**config, "num_attention_heads": 4}))
    with pytest.raises(UserError, match="another shape"):
        Pipeline.from_pretrained(model)


def test_codes_are_doubled_and_glyphs_padded_on_the_left():
    codes = np.array([[[1, 2]]])
    np.testing.assert_array_equal(upsample_codes(codes), [[1, 1, 2, 2, 1, 1, 2, 2]])
    glyph, mask = pad_glyphs([np.ones((2, 3)), np.ones((5, 3))], multiple=4)
    assert glyph.shape == (2, 8, 3) and mask.sum(1).tolist() == [2, 5] and mask[:, -1].all()
    assert (glyph[~mask] == 0).all()
