"""`mindglm generate` refuses what cannot work before it reads a weight, and writes whole files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mindglm.errors import UserError
from mindglm.generate import command
from tests import golden

GOOD = {"model": golden.REPO, "prompts": ["a cat"], "height": 64, "width": 96, "steps": 4, "guidance_scale": 1.5,
        "seed": 0, "num_images": 1}


def _check(tmp_path, **changes):
    return command.check_arguments(**{**GOOD, "output": tmp_path / "new" / "cat.png", **changes})


def test_good_arguments_pass_and_missing_sizes_are_the_models_own(tmp_path):
    expected = command.Request(["a cat"], 64, 96, [], None, tmp_path / "new" / "cat.png", None)
    assert _check(tmp_path) == expected
    native = _check(tmp_path, height=None, width=None)
    assert (native.height, native.width) == (128, 128)


@pytest.mark.parametrize("changes, message", [
    ({"prompts": []}, "no prompt"), ({"prompts": ["a cat", "  "]}, "prompt 2 is empty"), ({"height": 100}, "multiple"),
    ({"width": 80}, "multiple"), ({"height": 32, "width": 160}, "4"), ({"steps": 0}, "--steps"),
    ({"steps": 1001}, "at most 1000"), ({"num_images": 0}, "--num-images"), ({"seed": -1}, "--seed"),
    ({"guidance_scale": float("nan")}, "--guidance-scale"), ({"model": "no/such/folder"}, "no such folder"),
    ({"output": "picture.jpg"}, ".png"), ({"prompts": ["a <|image|>"]}, "stands for a source image"),
    ({"prompt_file": "no/such/file"}, "--prompt-file no/such/file cannot be read"),
    ({"images": ["no/such.png"]}, "--image no/such.png cannot be read"),
    ({"prior_codes": "no/such.json"}, "--prior-codes no/such.json cannot be read"),
    ({"prior_codes": "a.json", "save_prior_codes": "b.json"}, "both given"),
    ({"save_prior_codes": "codes.txt"}, "ends in .json")])
def test_bad_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        _check(tmp_path, **changes)


def test_output_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for output, message in (("file/a.png", "cannot be written"), ("folder.png", "is a folder")):
        with pytest.raises(UserError, match=message):
            command.check_output(tmp_path / output, "--output", ".png")


def _copy(tmp_path):
    return shutil.copytree(golden.REPO, tmp_path / "model")


def test_foreign_and_incomplete_models_are_named(tmp_path):
    model = _copy(tmp_path)
    shutil.rmtree(model / "transformer")
    with pytest.raises(UserError, match="transformer missing"):
        _check(tmp_path, model=model)
    (model / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="StableDiffusionPipeline"):
        _check(tmp_path, model=model)
    (model / "model_index.json").unlink()
    with pytest.raises(UserError, match="no model_index.json"):
        _check(tmp_path, model=model)


def test_tokenizer_without_generator_is_told_apart(tmp_path):
    from mindglm.checkpoint.released import component_config, read_component, write_component

    model, component = _copy(tmp_path), "vision_language_encoder"
    tensors = {n: t for n, t in read_component(model, component).items() if n != "lm_head.weight"}
    write_component(model, component, component_config(model, component), tensors, "bfloat16")
    with pytest.raises(UserError, match="only the image tokenizer"):
        _check(tmp_path, model=model)


def test_pictures_are_laid_out_a_row_a_prompt():
    pictures = [Image.new("RGB", (8, 4), (i, 0, 0)) for i in range(6)]
    grid = np.asarray(command.picture_grid(pictures, command.columns_for(6, 3)))
    assert grid.shape == (4 * 2 + 2, 8 * 3 + 4, 3)
    assert grid[6 + 1, 10 + 1, 0] == 4  # second prompt, second picture
    assert command.picture_grid(pictures[:1], 1) is pictures[0]
    assert command.columns_for(5, 1) == 3


def test_png_is_written_whole_or_not_at_all(tmp_path):
    class Broken:
        def save(self, path, _):
            path.write_bytes(b"half")
            raise OSError("disk full")

    target = tmp_path / "a.png"
    command.write_png(Image.new("RGB", (2, 2)), target)
    before = target.read_bytes()
    with pytest.raises(OSError):
        command.write_png(Broken(), target)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]
