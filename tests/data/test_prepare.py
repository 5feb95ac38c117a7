"""From a folder of pictures to shards, with the encoders of the reference's tiny checkpoint."""

import json
import shutil

import numpy as np
import pytest

from mindglm.data import prepare, shards
from mindglm.data.loader import ShardDataset
from mindglm.errors import UserError
from tests.data.pictures import picture, picture_folder, write_captions
from tests.golden import REPO


def run(images, output, pixels_only=True, **changes):
    options = {"sizes": [(64, 64)], "held_out": 0.0, "shard_size": 4, **changes}
    return prepare.run(images, None, None if pixels_only else REPO, output, pixels_only=pixels_only, **options)


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """(image folder, dataset folder) with everything encoded."""
    root = tmp_path_factory.mktemp("encoded")
    images = picture_folder(root / "images")
    run(images, root / "data", pixels_only=False)
    return images, root / "data"


def test_every_array_has_its_shape(encoded):
    dataset = ShardDataset(encoded[1], "train", model_dir=REPO)
    assert len(dataset) == 5 and len(ShardDataset(encoded[1], "held_out")) == 1
    for i, sample in enumerate(dataset):
        assert sample["id"] == f"p{i}.png" and sample["index"] == i
        assert sample["large_codes"].shape == (2, 2) and sample["preview_codes"].shape == (16, 16)
        assert sample["latents"].shape == (4, 8, 8) and sample["empty_glyph"].shape == (1, 40)
        assert sample["glyph"].shape == (3 if i % 2 else 1, 40), "two letters and the end, or the end alone"
        assert {sample[name].dtype for name in ("large_codes", "preview_codes", "prompt_ids")} == {np.dtype(np.int32)}
        assert {sample[name].dtype for name in ("latents", "glyph")} == {np.dtype(np.float32)}
        assert sample["target_size"].tolist() == [64, 64] and sample["crop"].tolist() == [0, 0]
        for name in ("large_codes", "preview_codes"):
            assert 0 <= sample[name].min() and sample[name].max() < 64


def test_arrays_are_what_the_encoders_give_for_one_picture(encoded):
    from mindspore import Tensor

    from mindglm.data.encoders import Encoders
    from mindglm.models.ar_generator.processor import Processor, tokenizer_view
    from mindglm.models.glyph_encoder.text import embed_prompts

    dataset, encoders, processor = ShardDataset(encoded[1]), Encoders(REPO, 64, 64), Processor.from_pretrained(REPO)
    for i in (0, 3):
        sample, pixels = dataset[i], np.asarray(picture(i))
        assert sample["prompt_ids"].tolist() == processor.prompt_ids(sample["caption"], 64, 64)
        for name, grid in (("large_codes", (2, 2)), ("preview_codes", (16, 16))):
            codes = encoders.vision.encode(tokenizer_view(pixels, *grid)[None]).asnumpy()[0]
            assert np.array_equal(sample[name], codes), name
        x = pixels.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        assert np.allclose(sample["latents"], encoders.vae.encode(Tensor(x)).asnumpy()[0], atol=1e-4)
        glyph = embed_prompts(encoders.glyph, [sample["caption"]])[0]
        assert np.allclose(sample["glyph"], np.asarray(glyph), atol=1e-5)
    assert sample["empty_prompt_ids"].tolist() == processor.prompt_ids("", 64, 64)


def test_the_compiled_tower_gives_the_same_codes(encoded):
    from mindglm.data.encoders import Encoders

    encoders = Encoders(REPO, 64, 64, batch_size=2, compiled=True)
    dataset = ShardDataset(encoded[1])
    samples = encoders.encode([np.asarray(picture(i)) for i in range(3)], dataset.captions()[:3])
    assert len(samples) == 3
    for i, sample in enumerate(samples):
        for name in ("large_codes", "preview_codes"):
            assert np.array_equal(sample[name], dataset[i][name]), (i, name)


def test_running_again_makes_nothing_new(encoded, capsys, monkeypatch):
    images, data = encoded
    before, index = stamps(data), (data / "index.json").read_bytes()
    monkeypatch.setattr(prepare._Job, "encoders", lambda *_: pytest.fail("the encoders were loaded"))
    run(images, data, pixels_only=False)
    assert stamps(data) == before and (data / "index.json").read_bytes() == index
    assert "2 shards (2 reused)" in capsys.readouterr().out


def test_another_encoder_makes_all_shards_again_and_is_noticed(encoded, tmp_path):
    from mindglm.checkpoint.released import component_config, read_component, write_component

    images, data = encoded
    shutil.copytree(REPO, tmp_path / "model")
    tensors = read_component(REPO, "vae")
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + 1.0
    write_component(tmp_path / "model", "vae", component_config(REPO, "vae"), tensors, "bfloat16")
    with pytest.raises(UserError, match="another vae than"):
        ShardDataset(data, model_dir=tmp_path / "model")
    shutil.copytree(data, tmp_path / "data")
    before = stamps(tmp_path / "data")
    prepare.run(images, None, tmp_path / "model", tmp_path / "data", [(64, 64)], 0.0, shard_size=4)
    after = stamps(tmp_path / "data")
    assert set(after) == set(before) and all(after[name] != before[name] for name in after)
    old, new = ShardDataset(data)[0], ShardDataset(tmp_path / "data", model_dir=tmp_path / "model")[0]
    assert np.array_equal(old["large_codes"], new["large_codes"]) and not np.allclose(old["latents"], new["latents"])


def test_the_language_model_does_not_count_as_an_encoder(tmp_path):
    from mindglm.checkpoint.released import component_config, read_component, write_component
    from mindglm.data.fingerprint import encoder_hashes

    shutil.copytree(REPO, tmp_path / "model")
    tensors = read_component(REPO, "vision_language_encoder")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2.0
    config = component_config(REPO, "vision_language_encoder")
    write_component(tmp_path / "model", "vision_language_encoder", config, tensors, "bfloat16")
    assert encoder_hashes(tmp_path / "model") == encoder_hashes(REPO)


def test_pixels_only_needs_no_model(tmp_path):
    index = run(picture_folder(tmp_path / "images"), tmp_path / "data")
    assert index["counts"]["train"] == 5 and index["encoder"] == {}
    sample = ShardDataset(tmp_path / "data")[3]
    assert np.array_equal(sample["pixels"], np.asarray(picture(3)))
    assert set(sample) == {"id", "caption", "index", "pixels"}


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    images, data, read, opened = picture_folder(tmp_path / "images"), tmp_path / "data", prepare.readers.load_image, []

    def stop_at_the_sixth(content):
        opened.append(1)
        if len(opened) == 6:
            raise KeyboardInterrupt
        return read(content)

    monkeypatch.setattr(prepare.readers, "load_image", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run(images, data)
    with pytest.raises(UserError, match="not finished"):
        ShardDataset(data)
    first = stamps(data)
    assert set(first) == {"shard-00000.json", "shard-00000.safetensors"}
    index = run(images, data)
    assert index["counts"]["train"] == 5 and {name: stamps(data)[name] for name in first} == first
    assert len(opened) == 8, "the second run opens the two pictures of the second shard only"


def test_a_torn_shard_is_made_again(tmp_path):
    images, data = picture_folder(tmp_path / "images"), tmp_path / "data"
    run(images, data)
    torn = data / "shard-00000.safetensors"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="shard-00000 is missing, damaged"):
        ShardDataset(data)
    run(images, data)
    assert torn.read_bytes() == whole


def test_only_the_shard_of_a_mended_picture_is_made_again(tmp_path):
    images, data = picture_folder(tmp_path / "images"), tmp_path / "data"
    (images / "p1.png").write_bytes(b"broken")
    assert run(images, data)["counts"]["refused"] == {"unreadable image": 1}
    before = stamps(data)
    picture(1).save(images / "p1.png")
    assert run(images, data)["counts"]["refused"] == {}
    changed = {name for name, stamp in stamps(data).items() if before[name] != stamp}
    assert changed == {"shard-00000.json", "shard-00000.safetensors"}
    assert [sample["id"] for sample in ShardDataset(data)] == [f"p{i}.png" for i in range(5)]


def test_refusals_are_counted_and_listed(tmp_path, capsys):
    images = picture_folder(tmp_path / "images")
    picture(7, 64, 300).save(images / "thin.png")
    picture(8, 20, 20).save(images / "tiny.png")
    picture(9, 96, 128).save(images / "large.png")
    picture(9).save(images / "lonely.png")
    picture(9).convert("L").save(images / "grey.png")
    rows = [json.loads(line) for line in (images / "captions.jsonl").read_text().splitlines()]
    more = [{"file": name, "caption": "c"} for name in ("thin.png", "tiny.png", "large.png", "gone.png", "grey.png")]
    write_captions(images, rows + more)
    counts = run(images, tmp_path / "data")["counts"]
    assert counts["refused"] == {reason: 1 for reason in (
        "aspect over 4", "too small", "caption without image", "image without caption")}
    assert counts["resized"] == 1 and counts["notes"] == {"mode L to RGB": 1} and counts["train"] == 7
    listed = [json.loads(line) for line in (tmp_path / "data" / "refused.jsonl").read_text().splitlines()]
    assert {row["file"]: row["reason"] for row in listed} == {
        "thin.png": "aspect over 4", "tiny.png": "too small", "gone.png": "caption without image",
        "lonely.png": "image without caption"}
    shown = capsys.readouterr().out
    assert "refused: 4" in shown and "1 too small" in shown and "resized or cropped: 1" in shown


def test_fewer_pictures_leave_no_old_shard(tmp_path):
    images, data = picture_folder(tmp_path / "images"), tmp_path / "data"
    run(images, data)
    write_captions(images, [{"file": "p0.png", "caption": "only one"}])
    assert run(images, data)["counts"]["train"] == 1
    assert set(stamps(data)) == {"shard-00000.json", "shard-00000.safetensors"}
    assert ShardDataset(data).captions() == ["only one"]


def test_held_out_share_is_stable_when_pictures_are_added(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for i in range(40):
        picture(i % 3, 32, 32).save(images / f"p{i}.png")
        rows.append({"file": f"p{i}.png", "caption": f"c{i}"})

    def held_out(count):
        write_captions(images, rows[:count])
        run(images, tmp_path / "data", sizes=[(32, 32)], held_out=0.3, shard_size=16)
        return {sample["id"] for sample in ShardDataset(tmp_path / "data", "held_out")}

    some, more = held_out(30), held_out(40)
    assert 4 < len(more) < 20 and some == {name for name in more if int(name[1:-4]) < 30}


@pytest.mark.parametrize("changes, message", [
    ({"sizes": [(100, 64)]}, "multiples of 32.*; try 64x96"), ({"sizes": [(64, 0)]}, "multiples of 32.*; try 32x64"),
    ({"sizes": [(32, 160)]}, "160x32: expected one side at most 4 times"), ({"sizes": []}, "no size given"),
    ({"sizes": [(64, 64), (64, 64), (33, 64)]}, "64x33: expected positive multiples.*64x64: given twice"),
    ({"held_out": 1.0}, "0 <= share < 1"), ({"shard_size": 0}, "at least 1")])
def test_wrong_arguments_are_user_errors(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(picture_folder(tmp_path / "images"), tmp_path / "data", **changes)
    assert not (tmp_path / "data").exists()


def test_other_user_errors(tmp_path):
    images = picture_folder(tmp_path / "images")
    with pytest.raises(UserError, match="is not a folder"):
        run(tmp_path / "none", tmp_path / "data")
    with pytest.raises(UserError, match="image folder itself"):
        run(images, images)
    with pytest.raises(UserError, match="model: none given"):
        prepare.run(images, None, None, tmp_path / "data", [(64, 64)])
    with pytest.raises(UserError, match="none is not a folder"):
        prepare.run(images, None, tmp_path / "none", tmp_path / "data", [(64, 64)])
    with pytest.raises(UserError, match="288x96: .* sides of at most 256: the vision tower's position table has 8"):
        prepare.run(images, None, REPO, tmp_path / "data", [(64, 64), (96, 288)])
    assert not (tmp_path / "data").exists()
    for path in images.glob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="no picture could be used: 6 unreadable image"):
        run(images, tmp_path / "data")


def test_pack_keeps_ragged_rows():
    arrays = shards.pack([{"glyph": np.ones((n, 2), np.float32) * n, "crop": np.zeros(2, np.int32)} for n in (1, 3, 2)])
    assert arrays["glyph"].shape == (6, 2) and arrays["glyph_offsets"].tolist() == [0, 1, 4, 6]
    assert arrays["crop"].shape == (3, 2)
