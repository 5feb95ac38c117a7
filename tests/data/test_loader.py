"""What the loader refuses, and that it reads what was written."""

import json

import pytest

from mindglm.data import prepare
from mindglm.data.loader import ShardDataset
from mindglm.errors import UserError
from tests.data.pictures import picture_folder
from tests.golden import REPO


@pytest.fixture
def data(tmp_path):
    prepare.run(picture_folder(tmp_path / "images"), None, None, tmp_path / "data", [(64, 64)], 0.0, True, 4)
    return tmp_path / "data"


def change_index(folder, **fields):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_samples_by_number(data):
    dataset = ShardDataset(data)
    assert len(dataset) == 5 and [sample["id"] for sample in dataset] == [f"p{i}.png" for i in range(5)]
    assert dataset.captions()[1] == 'a sign that says "W1"' and dataset[4]["caption"] == "picture number 4"
    assert ShardDataset(data, "held_out")[0]["id"] == "p5.png"
    for i in (-1, 5):
        with pytest.raises(IndexError):
            dataset[i]


def test_a_sample_may_be_changed_without_changing_the_next_read(data):
    dataset = ShardDataset(data)
    first = dataset[0]["pixels"]
    first[:] = 0
    assert dataset[0]["pixels"].any()


def test_missing_and_foreign_folders(data, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ShardDataset(tmp_path / "none")
    with pytest.raises(UserError, match="not a dataset"):
        ShardDataset(tmp_path / "images")
    for fields, message in (({"kind": "x"}, "not one of"), ({"format": 99}, "format 99")):
        saved = (data / "index.json").read_text()
        change_index(data, **fields)
        with pytest.raises(UserError, match=message):
            ShardDataset(data)
        (data / "index.json").write_text(saved)
    (data / "index.json").write_text("{")
    with pytest.raises(UserError, match="index.json is damaged"):
        ShardDataset(data)


def test_an_empty_split_is_named(data):
    index = json.loads((data / "index.json").read_text())
    change_index(data, splits={**index["splits"], "held_out": []})
    with pytest.raises(UserError, match="no sample in the split 'held_out'"):
        ShardDataset(data, "held_out")


def test_a_shard_of_another_preparation_is_noticed(data):
    path = data / "shard-00001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "other"}))
    with pytest.raises(UserError, match="shard-00001 is missing, damaged or of another preparation"):
        ShardDataset(data)


def test_pixels_are_not_codes(data):
    with pytest.raises(UserError, match="holds pixels only"):
        ShardDataset(data, model_dir=REPO)
