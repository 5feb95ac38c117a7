"""Files that `mindglm generate` takes and gives: prompts, source images, image codes. Bad ones end with exit code 2."""

import json

import numpy as np
import pytest
from PIL import Image

from mindglm import ops
from mindglm.cli import main as cli
from mindglm.errors import UserError
from mindglm.generate import codes_file, command
from tests import golden

HEIGHT, WIDTH = 64, 96
NUM_CODES = 64


@pytest.fixture
def call(tmp_path, capsys):
    """Runs the command on the tiny checkpoint: (exit code, what it told)."""
    def run(*arguments):
        status = cli.main(["generate", "--model", str(golden.REPO), "--output", str(tmp_path / "out.png"), "--steps",
                           "1", *(str(argument) for argument in arguments)])
        told = capsys.readouterr()
        return status, told.out + told.err
    return run


def refused(call, *arguments):
    """What the command tells when it refuses: one message, exit code 2, no picture."""
    status, told = call(*arguments)
    assert status == 2 and told.startswith("mindglm: ") and told.count("\n") == 1, told
    return told


def picture(path, height=HEIGHT, width=WIDTH, mode="RGB"):
    pixels = np.random.default_rng(height).integers(256, size=(height, width, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path)
    return path


def test_prompts_are_read_one_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes('\ufeffa cat\r\n\n  a sign that says "夜"  \n'.encode())
    assert command.check_prompts(["first"], path) == ["first", "a cat", 'a sign that says "夜"']


def test_bad_prompt_files_are_refused(tmp_path, call):
    path = tmp_path / "prompts.txt"
    for content, message in ((b"\n  \n", "holds no prompt"), (b"caf\xe9\n", "not UTF-8"),
                             (b"a <|image|> cat\n", "stands for a source image")):
        path.write_bytes(content)
        assert message in refused(call, "--prompt-file", path)
    assert "cannot be read: Is a directory" in refused(call, "--prompt-file", tmp_path)
    assert "no prompt given" in refused(call)


def test_bad_source_images_are_refused(tmp_path, call):
    good, text = picture(tmp_path / "good.png"), tmp_path / "text.png"
    text.write_text("not a picture")
    whole = good.read_bytes()
    (tmp_path / "half.png").write_bytes(whole[:len(whole) // 2])
    for path, message in ((picture(tmp_path / "a.png", 80, 96), "Resize it to 96 x 64"),
                          (picture(tmp_path / "b.png", 300, 64), "too long"),
                          (picture(tmp_path / "c.png", 12, 40), "too small"), (text, "unreadable image"),
                          (tmp_path / "half.png", "unreadable image"), (tmp_path / "none.png", "No such file")):
        told = refused(call, "--prompt", "a", "--image", good, "--image", path)
        assert str(path) in told and message in told


def test_transparency_is_laid_over_white_and_said(tmp_path, capsys):
    from mindglm.models.ar_generator.processor import Processor

    path = tmp_path / "clear.png"
    Image.new("RGBA", (96, 64), (0, 0, 0, 0)).save(path)
    image = command.load_source(path, Processor.from_pretrained(golden.REPO))
    assert image.mode == "RGB" and np.asarray(image).min() == 255
    assert "alpha onto white" in capsys.readouterr().out


def test_source_images_need_the_image_tokenizer(tmp_path):
    import shutil

    from mindglm.checkpoint.released import component_config, read_component, write_component

    model, component = shutil.copytree(golden.REPO, tmp_path / "model"), "vision_language_encoder"
    tensors = {n: t for n, t in read_component(model, component).items() if not n.startswith("model.visual.")}
    write_component(model, component, component_config(model, component), tensors, "bfloat16")
    arguments = [model, ["a"], HEIGHT, WIDTH, 1, 1.5, 0, 1, tmp_path / "x.png"]
    assert command.check_arguments(*arguments).images == []
    with pytest.raises(UserError, match="no image tokenizer"):
        command.check_arguments(*arguments, images=[picture(tmp_path / "a.png")])


def test_codes_are_read_as_written(tmp_path):
    codes = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    codes_file.write(tmp_path / "c.json", codes, ["a", "夜"], NUM_CODES)
    np.testing.assert_array_equal(codes_file.read(tmp_path / "c.json", NUM_CODES), codes)
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    pictures = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["pictures"]
    assert pictures[1] == {"prompt": "夜", "codes": [[6, 7, 8], [9, 10, 11]]}


def test_codes_of_a_prompt_serve_all_its_pictures():
    codes = np.arange(12).reshape(2, 2, 3)
    assert codes_file.fit(codes, 2, 2, HEIGHT, WIDTH, "f") is codes
    np.testing.assert_array_equal(codes_file.fit(codes, 4, 2, HEIGHT, WIDTH, "f"), codes[[0, 0, 1, 1]])
    with pytest.raises(UserError, match="the codes of 2 pictures; expected 1 .one a prompt. or 3 .one a picture."):
        codes_file.fit(codes, 3, 1, HEIGHT, WIDTH, "f")


GOOD_CODES = {"format": codes_file.FORMAT, "version": 1, "num_codes": NUM_CODES,
              "pictures": [{"prompt": "a", "codes": [[1, 2, 3], [4, 5, 63]]}]}


def with_codes(*grids):
    return {**GOOD_CODES, "pictures": [{"prompt": "a", "codes": grid} for grid in grids]}


@pytest.mark.parametrize("content, message", [
    ("{", "is not JSON"), ([], "--save-prior-codes wrote"), ({**GOOD_CODES, "version": 2}, "--save-prior-codes wrote"),
    ({**GOOD_CODES, "num_codes": 16384}, "a model with 16384 codes, this model has 64"),
    ({**GOOD_CODES, "pictures": []}, "at least one picture"), (with_codes(7), "a list of rows"),
    (with_codes([]), "a list of rows"), (with_codes([[1, 2], [3]]), "rows of 1 to 2 codes"),
    (with_codes([[1, 2, 3], [4, 5, 64]]), "picture 1, row 2, column 3: 64 is no code"),
    (with_codes([[1, 2, -1]]), "row 1, column 3: -1 is no code"), (with_codes([[True]]), "True is no code"),
    (with_codes([[1.0]]), "1.0 is no code"), (with_codes([[1]], [[1, 2]]), "grids of different sizes"),
    (with_codes([[1, 2, 3]]), "height 32 and width 96; asked for are 64 and 96"),
    (with_codes(*GOOD_CODES["pictures"][0]["codes"]), "a list of rows"),
    (with_codes(*[GOOD_CODES["pictures"][0]["codes"]] * 2), "the codes of 2 pictures; expected 1")])
def test_bad_codes_are_refused(tmp_path, call, content, message):
    path = tmp_path / "codes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    told = refused(call, "--prompt", "a", "--prior-codes", path, "--height", HEIGHT, "--width", WIDTH)
    assert str(path) in told and message in told


def test_codes_set_the_size(tmp_path):
    path = tmp_path / "codes.json"
    path.write_text(json.dumps(GOOD_CODES))
    request = command.check_arguments(golden.REPO, ["a"], None, None, 1, 1.5, 0, 2, tmp_path / "x.png",
                                      prior_codes=path)
    assert (request.height, request.width) == (64, 96) and request.prior_codes.shape == (2, 2, 3)


def test_command_with_source_images_saves_codes_and_draws_them_again(tmp_path, call, monkeypatch):
    """Two prompts of a file, two source images; the saved codes give the same picture without the AR generator."""
    monkeypatch.setattr(ops, "DEVICE", "compiling is another test's matter and takes most of the time")
    prompts, codes, output = tmp_path / "p.txt", tmp_path / "new" / "codes.json", tmp_path / "out.png"
    prompts.write_text("a cat\na 'DOG'\n")
    common = ["--prompt-file", prompts, "--height", HEIGHT, "--width", WIDTH, "--image",
              picture(tmp_path / "1.png"), "--image", picture(tmp_path / "2.png", 96, 64)]
    status, told = call(*common, "--save-prior-codes", codes)
    assert status == 0 and f"wrote {codes} (the codes of 2)" in told and "(2 pictures)" in told
    first = np.asarray(Image.open(output))
    saved = codes_file.read(codes, NUM_CODES)
    assert saved.shape == (2, 2, 3)
    assert call(*common, "--prior-codes", codes)[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(output)), first)
