"""Prompts, grids and pixels against the public processor."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mindglm.errors import UserError
from mindglm.models.ar_generator.processor import (
    PixelSettings, Processor, check_size, check_source_size, smart_resize, target_grids,
)
from tests.golden import REPO, fixture, rel_error, side_car


@pytest.fixture(scope="module")
def processor():
    return Processor.from_pretrained(REPO)


@pytest.fixture(scope="module")
def data():
    return fixture("processor")


def test_target_grids():
    for (height, width), (large_h, large_w, preview_h, preview_w) in side_car("processor")["target_shape"]:
        assert target_grids(height, width) == ((large_h, large_w), (preview_h, preview_w))


def test_prompt_ids_and_grids(processor, data):
    for i, case in enumerate(side_car("processor")["t2i_cases"]):
        height, width = case["height"], case["width"]
        assert processor.prompt_text(case["prompt"], height, width) == case["text"]
        ids = processor.prompt_ids(case["prompt"], height, width)
        assert ids == data[f"t2i{i}.input_ids"][0].tolist()
        grids = [list(grid) for grid in processor.target_grids(height, width)]
        assert grids == data[f"t2i{i}.image_grid_thw"][:, 1:].tolist()


def test_prompt_ids_of_a_batch(processor, data):
    for i, case in enumerate(side_car("processor")["t2i_cases"][:2]):
        valid = data["t2i_batch.attention_mask"][i] == 1
        assert processor.prompt_ids(case["prompt"], 64, 64) == data["t2i_batch.input_ids"][i][valid].tolist()


def test_smart_resize_of_the_release():
    for (height, width), expected in side_car("processor")["smart_resize_release"]:
        assert smart_resize(height, width, 16, 512**2, 2048**2) == tuple(expected)


def test_pixel_values(processor, data):
    for i in range(3):
        patches, grid = processor.image_patches(data[f"image{i}"])
        assert [1, *grid] == data[f"image{i}.grid"][0].tolist()
        assert rel_error(patches, data[f"image{i}.pixel_values"]) <= 1e-6
    both = [processor.image_patches(Image.fromarray(data[f"image{i}"]))[0] for i in range(2)]
    assert rel_error(np.concatenate(both), data["i2i.pixel_values"]) <= 1e-6


def test_transparent_and_grey_images_become_rgb(processor):
    for mode in ("RGBA", "L", "P"):
        patches, grid = processor.image_patches(Image.new(mode, (64, 64)))
        assert patches.shape == (grid[0] * grid[1], 768)


@pytest.mark.parametrize("height, width, word", [
    (100, 96, "height 100.*nearest is 96"), (96, 0, "width 0.*nearest is 32"), (96, -32, "width -32"),
    (32, 160, "at most 4"),
])
def test_bad_sizes_are_refused(height, width, word):
    with pytest.raises(UserError, match=word):
        check_size(height, width)


def test_good_sizes_pass(processor):
    for size in ((32, 32), (128, 128), (1024, 2048), (32, 128)):
        processor.check_size(*size)


@pytest.mark.parametrize("height, width, word", [(15, 100, "too small"), (64, 300, "too long")])
def test_bad_source_images_are_refused(processor, height, width, word):
    with pytest.raises(UserError, match=word):
        processor.image_patches(np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize("token", ["<|image|>", "<|dit_token_64|>", "<|dit_token_65|>"])
def test_a_prompt_with_a_token_of_images_is_refused(processor, token):
    with pytest.raises(UserError, match="source image"):
        processor.prompt_ids(f"a {token} cat", 64, 64)


RELEASED = PixelSettings(512**2, 2048**2, 16, (0.5,) * 3, (0.5,) * 3, 3, 1 / 255)


@pytest.mark.parametrize("height, width", [(512, 512), (2048, 512), (1056, 1024), (2048, 2048), (1024, 768)])
def test_source_images_both_models_see_alike_pass(height, width):
    assert check_source_size(height, width, RELEASED) == (height // 32, width // 32)


@pytest.mark.parametrize("height, width, advice", [
    (1040, 1024, "Resize it to 1024 x 1024"), (700, 500, "Resize it to 512 x 704"),
    (3000, 2000, "Resize it to 1376 x 2048"), (480, 480, "Resize it to 512 x 512"), (15, 100, "too small"),
    (512, 2300, "too long")])
def test_source_images_the_models_would_see_differently_are_refused(height, width, advice):
    with pytest.raises(UserError, match=advice):
        check_source_size(height, width, RELEASED)


def test_the_size_advised_is_one_that_passes():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(100, 4000, (300, 2)):
        with contextlib.suppress(UserError):  # too long: no advice
            check_source_size(int(height), int(width), RELEASED)
            continue
        if max(height, width) <= 4 * min(height, width):
            rows, columns = (s // 16 for s in smart_resize(int(height), int(width), 16, 512**2, 2048**2))
            assert check_source_size(32 * rows, 32 * columns, RELEASED) == (rows, columns)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        Processor.from_pretrained(tmp_path)
    shutil.copytree(REPO / "processor", tmp_path / "processor")
    settings = json.loads((REPO / "processor" / "preprocessor_config.json").read_text())
    settings.pop("patch_size")
    (tmp_path / "processor" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="patch_size"):
        Processor.from_pretrained(tmp_path)
    (tmp_path / "processor" / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json cannot be read"):
        Processor.from_pretrained(tmp_path)
    (tmp_path / "processor" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        Processor.from_pretrained(tmp_path)
