"""Every way in which a raw sample can be unusable, and every conversion that is noted."""

import io

import numpy as np
import pytest
from PIL import Image

from mindglm.data import readers
from mindglm.errors import UserError
from tests.data.pictures import picture, write_captions


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def refused(content: bytes, height: int = 64, width: int = 64) -> readers.RefusedImage:
    with pytest.raises(readers.RefusedImage) as caught:
        readers.fit(readers.load_image(content)[0], height, width)
    return caught.value


def test_lines_become_candidates_or_refusals(tmp_path):
    for name in ("a.png", "b.png", "lonely.png", "split.png", "blank.png"):
        picture(0).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    captions = write_captions(tmp_path, [
        {"file": "a.png", "caption": " a cat ", "split": "held_out"},
        {"file": "b.png", "caption": "a dog"}, "",
        {"file": "gone.png", "caption": "a bird"}, {"file": "blank.png", "caption": "  "}, "{broken",
        {"caption": "no file"}, {"file": "a.png", "caption": "again"},
        {"file": "split.png", "caption": "x", "split": "test"}])
    candidates, refusals = readers.read_candidates(tmp_path, captions)
    kept = [(c.id, c.caption, c.split) for c in candidates]
    assert kept == [("a.png", "a cat", "held_out"), ("b.png", "a dog", None)]
    assert sorted((r.file, r.reason) for r in refusals) == [
        ("a.png", "listed twice"), ("blank.png", "empty caption"), ("captions.jsonl:6", "caption line unreadable"),
        ("captions.jsonl:7", "caption line unreadable"), ("gone.png", "caption without image"),
        ("lonely.png", "image without caption"), ("split.png", "caption line unreadable")]


def test_paths_may_be_relative_to_the_captions_file(tmp_path):
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "images" / "a.png")
    captions = write_captions(tmp_path, [{"file": "images/a.png", "caption": "x"}])
    candidates, refusals = readers.read_candidates(tmp_path / "images", captions)
    assert [c.id for c in candidates] == ["images/a.png"] and refusals == []


@pytest.mark.parametrize("prepare, message", [
    (lambda d: (d / "none", None), "not a folder"), (lambda d: (d, d / "none.jsonl"), "not a file"),
    (lambda d: (d, write_captions(d, [])), "is empty")])
def test_missing_input_is_a_user_error(tmp_path, prepare, message):
    with pytest.raises(UserError, match=message):
        readers.read_candidates(*prepare(tmp_path))


def test_captions_that_are_not_utf8(tmp_path):
    (tmp_path / "captions.jsonl").write_bytes('{"file": "a.png", "caption": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        readers.read_candidates(tmp_path)


def test_truncated_and_foreign_files_are_unreadable():
    whole = png(picture(1))
    assert refused(whole[: len(whole) // 2]).reason == "unreadable image"
    assert refused(b"hello").reason == "unreadable image"
    assert refused(b"").reason == "unreadable image"


def test_animation_thinness_smallness_and_ranges_are_refused():
    frames = [picture(i) for i in range(3)]
    assert refused(png(frames[0], format="GIF", save_all=True, append_images=frames[1:])).reason == "animated"
    assert refused(png(picture(0, 64, 257))).reason == "aspect over 4"
    assert refused(png(picture(0, 31, 31))).reason == "too small"
    assert readers.fit(picture(0, 32, 32), 64, 64)[2] is True
    buffer = io.BytesIO()
    Image.fromarray(np.ones((64, 64), np.float32)).save(buffer, "TIFF")
    assert refused(buffer.getvalue()).reason == "unsupported mode"


def test_alpha_is_laid_on_white_and_noted():
    rgba = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    rgba.paste((0, 0, 255, 255), (0, 0, 32, 64))
    image, notes = readers.load_image(png(rgba))
    assert notes == ["alpha onto white"] and image.mode == "RGB"
    assert image.getpixel((10, 10)) == (0, 0, 255) and image.getpixel((50, 10)) == (255, 255, 255)


@pytest.mark.parametrize("mode, note", [("L", "mode L to RGB"), ("P", "mode P to RGB"), ("CMYK", "mode CMYK to RGB")])
def test_other_modes_are_converted_and_noted(mode, note):
    content = png(picture(2).convert(mode), format="JPEG" if mode == "CMYK" else "PNG")
    image, notes = readers.load_image(content)
    assert notes == [note] and image.mode == "RGB"


def test_sixteen_bits_keep_their_range():
    image, notes = readers.load_image(png(Image.fromarray(np.full((64, 64), 65535 // 2, np.uint16))))
    assert notes == ["16 bits to 8"] and image.getpixel((3, 3)) == (127, 127, 127)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image, notes = readers.load_image(png(picture(0, 64, 96), format="JPEG", exif=exif))
    assert image.size == (64, 96) and notes == ["turned by EXIF orientation"]


def test_fit_crops_the_centre_and_says_where():
    wide = Image.new("RGB", (128, 64), (0, 0, 0))
    wide.paste((250, 250, 250), (32, 0, 96, 64))
    pixels, crop, changed = readers.fit(wide, 64, 64)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 and pixels.min() == 250
    assert crop == (0, 32) and changed
    pixels, crop, changed = readers.fit(picture(1), 64, 64)
    assert np.array_equal(pixels, np.asarray(picture(1))) and crop == (0, 0) and not changed
    assert readers.fit(picture(1, 200, 130), 96, 64)[0].shape == (96, 64, 3)
