"""Sizes of pictures in recipes: how they are written, and which the models cannot have."""

import re
from pathlib import Path

import pytest

from mindglm import recipe
from mindglm.errors import UserError
from mindglm.recipe import sizes

NANO = Path(__file__).resolve().parents[2] / "recipes" / "nano"


def faults(name, *overrides):
    with pytest.raises(UserError) as refused:
        recipe.load(NANO / f"{name}.yaml", overrides)
    return str(refused.value)


def test_width_comes_first_and_height_is_what_code_takes_first():
    assert sizes.parse("768x1344") == (1344, 768) and sizes.name((1344, 768)) == "768x1344"
    wrong = ("768", "768x", "x9", "0x32", "-32x32", "32 x 32", "032x32", "32X32", "")
    assert {sizes.parse(text) for text in wrong} == {None}
    given = recipe.load(NANO / "dit.yaml", ["train_dataset.buckets=[128x96, 96x128]"])
    assert given.train_dataset.sizes == ((96, 128), (128, 96))
    assert recipe.loads(recipe.to_yaml(given)) == given
    assert recipe.load(NANO / "dit.yaml").train_dataset.sizes == ()


@pytest.mark.parametrize("size, table, expected", [
    ((64, 64), None, None), ((256, 64), None, None), ((4096, 4096), 128, None), ((2048, 512), 64, None),
    ((100, 64), None, "multiples of 32.* try 64x96"), ((0, 64), None, "multiples of 32.* try 64x32"),
    ((288, 64), None, "at most 4 times the other"), ((64, 288), 8, "at most 4 times"),
    ((4128, 4096), 128, "sides of at most 4096: .* has 128 places a side")])
def test_what_a_size_must_be(size, table, expected):
    found = sizes.fault(size, table)
    assert found is None if expected is None else re.search(expected, found)


def test_all_wrong_sizes_of_a_recipe_are_named_at_once():
    told = faults("ar", "train_dataset.buckets=[128x96, 100x96, 9x, 128x96, 4096x4096, 544x512]")
    for place, given in ((1, "100x96, expected positive multiples of 32"), (2, "'?9x'?, expected .*WIDTHxHEIGHT"),
                         (3, "128x96, expected each size once"), (4, "4096x4096, expected sides of at most 512"),
                         (5, "544x512, expected sides of at most 512")):
        assert re.search(rf"train_dataset.buckets\[{place}\]: given {given}", told), place


def test_a_crop_must_fit_into_every_size():
    told = faults("vae", "train_dataset.buckets=[64x64, 96x32]", "objective.crop_size=64")
    assert "train_dataset.buckets[1]: given 96x32, expected sides of at least objective.crop_size (64)" in told
    assert "buckets[0]" not in told
