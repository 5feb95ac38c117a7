"""Pictures of many shapes, dealt to buckets: each to the one that changes it least, none lost, shards of one size."""

import json

import numpy as np
import pytest
from PIL import Image

from mindglm.data import prepare, readers
from mindglm.data.loader import ShardDataset
from mindglm.errors import UserError
from tests.data.pictures import picture, picture_folder, write_captions

SIZES = [(96, 64), (64, 64), (64, 96), (128, 128)]


@pytest.mark.parametrize("size, bucket", [
    ((64, 64), (64, 64)), ((640, 640), (128, 128)), ((66, 64), (64, 64)), ((90, 64), (96, 64)), ((64, 90), (64, 96)),
    ((300, 200), (96, 64)), ((80, 80), (64, 64)), ((95, 95), (64, 64)), ((120, 118), (128, 128)), ((70, 128), (64, 96)),
    ((60, 40), (96, 64)), ((40, 39), (64, 64))], ids=str)
def test_a_picture_goes_where_it_is_changed_least(size, bucket):
    """The shape decides first, then the resolution; an enlargement counts twice."""
    assert SIZES[readers.nearest_bucket(size, SIZES)] == bucket


def test_no_enlargement_beyond_the_limit_for_the_sake_of_the_shape():
    sizes = [(64, 64), (128, 192)]
    assert sizes[readers.nearest_bucket((64, 96), sizes)] == (128, 192), "twice as large, and nothing cut away"
    assert sizes[readers.nearest_bucket((62, 93), sizes)] == (64, 64), "more than twice: cut to a square instead"
    assert sizes[readers.nearest_bucket((20, 30), sizes)] == (64, 64), "too small for all: `fit` refuses it there"
    with pytest.raises(readers.RefusedImage, match="too small"):
        readers.fit(picture(0, 20, 30), 64, 64)


def test_choosing_loses_least_of_many_pictures():
    """Against the choice by hand over a grid of pictures: cut area within CROP_SLACK of the least there is."""
    for height in range(40, 400, 23):
        for width in range(40, 400, 19):
            scales = [max(h / height, w / width) for h, w in SIZES]
            kept = [h * w / (height * width * s * s) for (h, w), s in zip(SIZES, scales)]
            possible = [i for i, s in enumerate(scales) if s <= readers.MAX_ENLARGEMENT]
            chosen = readers.nearest_bucket((height, width), SIZES)
            if possible:
                assert chosen in possible
                assert kept[chosen] >= max(kept[i] for i in possible) - readers.CROP_SLACK - 1e-9


def test_the_size_is_that_of_the_turned_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for suffix in ("jpg", "png", "webp"):
        picture(0, 64, 96).save(tmp_path / f"turned.{suffix}", exif=exif)
        assert readers.picture_size(tmp_path / f"turned.{suffix}") == (96, 64)
    picture(0, 64, 96).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert readers.picture_size(tmp_path / "plain.png") == (64, 96)
    assert readers.picture_size(tmp_path / "broken.png") is None


def many(folder, count=24):
    """Pictures of four shapes in turn, the last one of each held out."""
    folder.mkdir()
    rows = []
    for i in range(count):
        picture(i, *SIZES[i % 4]).save(folder / f"p{i}.png")
        rows.append({"file": f"p{i}.png", "caption": f"c{i}", "split": "held_out" if i >= count - 4 else "train"})
    write_captions(folder, rows)
    return folder


def run(images, output, sizes=SIZES[:3], **changes):
    return prepare.run(images, None, None, output, sizes, **{"held_out": 0.0, "pixels_only": True, "shard_size": 8,
                                                             **changes})


def test_every_picture_is_in_one_bucket_and_every_shard_holds_one(tmp_path, capsys):
    images = many(tmp_path / "images")
    picture(90, 400, 64).save(images / "thin.png")
    (images / "broken.png").write_bytes(b"broken")
    rows = [json.loads(line) for line in (images / "captions.jsonl").read_text().splitlines()]
    write_captions(images, [*rows, {"file": "thin.png", "caption": "c"}, {"file": "broken.png", "caption": "c"}])
    index = run(images, tmp_path / "data")
    assert [(b["width"], b["height"], b["train"], b["held_out"], b["resized"]) for b in index["buckets"]] == [
        (64, 64, 10, 2, 6), (96, 64, 5, 1, 0), (64, 96, 5, 1, 0)], "the 128 x 128 pictures become 64 x 64"
    assert index["counts"]["refused"] == {"aspect over 4": 1, "unreadable image": 1}
    train, held_out = ShardDataset(tmp_path / "data"), ShardDataset(tmp_path / "data", "held_out")
    assert train.sizes == held_out.sizes == ((64, 64), (64, 96), (96, 64)) and len(train) == 20
    ids = sorted(sample["id"] for sample in [*train, *held_out])
    assert ids == sorted(f"p{i}.png" for i in range(24)), "none lost, none twice"
    for dataset in (train, held_out):
        assert sorted(np.concatenate(dataset.members).tolist()) == list(range(len(dataset)))
        for size, own in zip(dataset.sizes, dataset.members):
            assert {dataset[int(i)]["pixels"].shape[:2] for i in own} == {size}
    entry = next(i for i in train.members[1] if train[int(i)]["id"] == "p2.png")
    assert np.array_equal(train[int(entry)]["pixels"], np.asarray(picture(2, 64, 96)))
    told = capsys.readouterr().out
    assert "24 pictures in" in told and "64 x 96: 5 train, 1 held out, 0 resized or cropped" in told
    assert train.describe() == "64x64 (10), 96x64 (5), 64x96 (5)"


def test_the_order_in_which_buckets_are_named_does_not_matter(tmp_path):
    images = many(tmp_path / "images")
    indices = [run(images, tmp_path / "data", sizes) for sizes in (SIZES[:3], SIZES[2::-1])]
    assert indices[0] == indices[1]


def test_a_mended_picture_touches_the_shards_of_its_lines_only(tmp_path):
    images, data = many(tmp_path / "images"), tmp_path / "data"
    good = (images / "p9.png").read_bytes()
    (images / "p9.png").write_bytes(b"broken")
    run(images, data)
    before = {path.name: path.stat().st_mtime_ns for path in data.glob("shard-*")}
    (images / "p9.png").write_bytes(good)
    index = run(images, data)
    after = {path.name: path.stat().st_mtime_ns for path in data.glob("shard-*")}
    assert {name for name in after if after[name] != before.get(name)} == {
        "shard-00001-64x64.json", "shard-00001-64x64.safetensors"}, "p9 is square and was refused among the squares"
    assert index["counts"]["train"] == 20 and len(after) == 18


def test_going_back_to_one_size_leaves_no_old_shard(tmp_path):
    images, data = many(tmp_path / "images"), tmp_path / "data"
    run(images, data)
    index = run(images, data, [(64, 64)])
    assert {path.name for path in data.glob("shard-*")} == {
        f"{entry['name']}.{kind}" for entry in index["shards"] for kind in ("json", "safetensors")}
    assert [entry["name"] for entry in index["shards"]] == ["shard-00000", "shard-00001", "shard-00002"]
    assert ShardDataset(data).sizes == ((64, 64),)


def test_some_of_the_sizes_can_be_asked_for(tmp_path):
    run(many(tmp_path / "images"), tmp_path / "data")
    some = ShardDataset(tmp_path / "data", only=[(96, 64), (64, 96)])
    assert some.sizes == ((64, 96), (96, 64)) and len(some) == 10
    assert sorted(np.concatenate(some.members).tolist()) == list(range(10))
    assert {sample["pixels"].shape[:2] for sample in some} == set(some.sizes)
    assert [sample["index"] for sample in some] == list(range(10)) and len(some.captions()) == 10
    with pytest.raises(UserError, match="train_dataset.buckets: 128x128, 32x64 is not in .* 64x64, 96x64, 64x96"):
        ShardDataset(tmp_path / "data", only=[(128, 128), (64, 64), (64, 32)])


def test_a_size_without_samples_in_the_split_is_left_out(tmp_path):
    index = run(many(tmp_path / "images", 8), tmp_path / "data", [(64, 64), (64, 96), (96, 64), (256, 64)])
    assert [bucket["train"] for bucket in index["buckets"]] == [2, 1, 1, 0]
    assert ShardDataset(tmp_path / "data").sizes == ((64, 64), (64, 96), (96, 64))


def test_one_size_makes_what_it_always_made(tmp_path):
    """An index of format 1 is read, and its shards are reused by the same command."""
    images, data = picture_folder(tmp_path / "images"), tmp_path / "data"
    index = run(images, data, [(64, 64)], shard_size=4)
    old = {key: value for key, value in index.items() if key != "buckets"} | {"format": 1, "height": 64, "width": 64}
    old["shards"] = [{key: entry[key] for key in ("name", "samples", "key")} for entry in index["shards"]]
    (data / "index.json").write_text(json.dumps(old))
    dataset = ShardDataset(data)
    assert dataset.sizes == ((64, 64),) and dataset.index == index
    assert [dataset[i]["id"] for i in dataset.members[0].tolist()] == [f"p{i}.png" for i in range(5)]
    before = {path.name: path.stat().st_mtime_ns for path in data.glob("shard-*")}
    assert run(images, data, [(64, 64)], shard_size=4) == index
    assert {path.name: path.stat().st_mtime_ns for path in data.glob("shard-*")} == before


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    from mindglm.data import loader

    monkeypatch.setattr(loader, "OPEN_FILES", 2)
    run(many(tmp_path / "images"), tmp_path / "data")
    dataset = ShardDataset(tmp_path / "data")
    for i in (*range(20), *range(19, -1, -1)):
        name = int(dataset[i]["id"][1:-4])
        shape = dataset[i]["pixels"].shape[:2]
        assert shape == ((64, 64) if SIZES[name % 4] == (128, 128) else SIZES[name % 4])
        assert len(dataset._files) <= 2
