"""The released folder layout: byte-exact round trip of the golden checkpoint, and its user errors."""

import json
import shutil

import numpy as np
import pytest

from mindglm.checkpoint import released
from mindglm.errors import UserError
from tests import golden

DTYPES = {
    "vision_language_encoder": "bfloat16", "transformer": "bfloat16", "vae": "bfloat16", "text_encoder": "float32"}


@pytest.mark.parametrize("component", DTYPES)
@pytest.mark.parametrize("through_float32", [False, True])
def test_round_trip_gives_the_same_bytes(tmp_path, component, through_float32):
    """Promise 2: what is read and written again is the released file, weights, config and index."""
    read = released.read_component if through_float32 else released.read_component_raw
    index = golden.REPO / component / f"{released.WEIGHT_STEM[component]}.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"] if index.exists() else None
    config = released.component_config(golden.REPO, component)
    written = released.write_component(tmp_path, component, config, read(golden.REPO, component), DTYPES[component],
                                       weight_map=weight_map)
    for path in (golden.REPO / component).iterdir():
        if path.name == "config.json" or ".safetensors" in path.name:
            assert (written / path.name).read_bytes() == path.read_bytes(), path.name


def test_names_choose_and_order(tmp_path):
    header = released.component_header(golden.REPO, "vae")
    names = sorted(header)[5:2:-1]
    tensors = released.read_component(golden.REPO, "vae", names)
    assert list(tensors) == names
    assert all(array.dtype == np.float32 and array.shape == header[name][1] for name, array in tensors.items())
    tensors[names[0]][...] = 0  # a copy: may be written


def test_large_components_are_cut_into_shards(tmp_path):
    arrays = {f"layer.{i}": np.full((10, 10), i, np.float32) for i in range(7)}
    folder = released.write_component(tmp_path, "transformer", {}, arrays, "float32", max_shard_bytes=1000)
    assert len(list(folder.glob("*-of-00004.safetensors"))) == 4
    again = released.read_component(tmp_path, "transformer")
    assert all(np.array_equal(again[name], array) for name, array in arrays.items())
    assert json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())["metadata"] == {
        "total_size": 2800}


def test_replacing_leaves_nothing_of_the_old(tmp_path):
    many = {f"layer.{i}": np.zeros((10, 10), np.float32) for i in range(7)}
    released.write_component(tmp_path, "vae", {}, many, "float32", max_shard_bytes=1000, extra_files={"a.json": b"{}"})
    released.write_component(tmp_path, "vae", {"x": 1}, {"w": np.ones(3, np.float32)}, "float32")
    assert {p.name for p in (tmp_path / "vae").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["vae"]


def test_errors_name_the_place_and_the_tensor(tmp_path):
    with pytest.raises(UserError, match="expected the 'vae' component"):
        released.read_component(tmp_path, "vae")
    with pytest.raises(UserError, match="nothing.weight.*another model"):
        released.read_component(golden.REPO, "vae", ["nothing.weight"])
    with pytest.raises(UserError, match="config.json: no such file"):
        released.component_config(tmp_path, "vae")
    shutil.copytree(golden.REPO / "transformer", tmp_path / "transformer")
    shard = tmp_path / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match="00002-of-00002"):
        released.read_component(tmp_path, "transformer")
    shard.unlink()
    with pytest.raises(UserError, match="00002-of-00002.*no such file"):
        released.read_component(tmp_path, "transformer")
    assert released.has_component(golden.REPO, "vae") and not released.has_component(tmp_path, "vae")
