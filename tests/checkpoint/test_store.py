"""Training checkpoints: whole or absent, damage named, the newest kept."""

import json
import os

import numpy as np
import pytest

from mindglm.checkpoint import store
from mindglm.errors import UserError


def kinds(step: int) -> dict:
    rng = np.random.default_rng(step)
    arrays = {f"w{i}": rng.standard_normal((4, i + 1)).astype(np.float32) for i in range(3)}
    return {"model": arrays, "opt": {f"adam_m.{name}": array * 2 for name, array in arrays.items()}}


def save(root, step, keep=2):
    return store.save(root, step, kinds(step), {"global_step": step}, f"seed: {step}\n", prefix="run", keep=keep)


def test_what_is_saved_comes_back(tmp_path):
    folder = save(tmp_path, 120)
    assert folder.name == "iteration_00000120"
    assert {path.name for path in folder.iterdir()} == {
        "metadata.json", "common.json", "recipe.yaml", "run-model-0000000-0000001.safetensors",
        "run-opt-0000000-0000001.safetensors"}
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text().strip() == "120"
    loaded = store.load(tmp_path)
    assert (loaded.step, loaded.common, loaded.recipe_text) == (120, {"global_step": 120}, "seed: 120\n")
    for kind, arrays in kinds(120).items():
        assert {name: array.tobytes() for name, array in loaded.tensors[kind].items()} == {
            name: array.tobytes() for name, array in arrays.items()}


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert store.steps(tmp_path) == [15, 20]
    assert store.load(tmp_path, 15).step == 15
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moment", ["write_text", "os.rename", "sync_folder", "write_tensors"])
def test_a_kill_at_any_moment_loses_nothing(tmp_path, monkeypatch, moment):
    """Every call that touches the disk is made to fail in turn; the older checkpoint stays the one that is loaded."""
    save(tmp_path, 1)
    module, name = (os, "rename") if moment == "os.rename" else (store, moment)
    real, calls = getattr(module, name), []
    for failing in range(1, 10):
        calls.clear()

        def killed(*args, failing=failing, **kwargs):
            calls.append(1)
            if len(calls) == failing:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            try:
                save(tmp_path, 1 + failing, keep=20)
            except KeyboardInterrupt:
                pass
            else:
                break
        newest = store.load(tmp_path)
        assert newest.step in (store.steps(tmp_path)[-1], 1)
        expected = kinds(newest.step)["model"]
        assert all(np.array_equal(newest.tensors["model"][key], array) for key, array in expected.items())
    assert failing > 1, "nothing was made to fail"
    assert store.load(tmp_path).step == 1 + failing
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".iteration")]


def test_staging_leftovers_and_foreign_folders_are_ignored(tmp_path):
    save(tmp_path, 3)
    (tmp_path / ".iteration_00000009.77.tmp").mkdir()
    (tmp_path / "iteration_00000008").mkdir()  # no metadata.json: not complete
    (tmp_path / "iteration_other").mkdir()
    assert store.steps(tmp_path) == [3] and store.load(tmp_path).step == 3
    save(tmp_path, 8)
    assert store.steps(tmp_path) == [3, 8]
    assert not (tmp_path / ".iteration_00000009.77.tmp").exists()


def test_altered_bytes_are_refused_and_the_tensor_is_named(tmp_path):
    folder = save(tmp_path, 7)
    path = folder / "run-opt-0000000-0000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="tensor 'adam_m.w2' is damaged"):
        store.load(tmp_path)


def test_cut_and_missing_files_are_refused(tmp_path):
    folder = save(tmp_path, 7)
    path = folder / "run-model-0000000-0000001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="run-model.*continue from an earlier"):
        store.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="run-model"):
        store.load(tmp_path)
    path.write_bytes(whole)
    (folder / "common.json").write_text("{")
    with pytest.raises(UserError, match="common.json: damaged"):
        store.load(tmp_path)


def test_other_version_and_absence_are_said(tmp_path):
    assert store.steps(tmp_path / "nowhere") == []
    with pytest.raises(UserError, match="no complete checkpoint"):
        store.load(tmp_path)
    folder = save(tmp_path, 7)
    with pytest.raises(UserError, match="of step 8; found steps \\[7\\]"):
        store.load(tmp_path, 8)
    meta = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps({**meta, "version": 2}))
    with pytest.raises(UserError, match="version 2, expected 1"):
        store.load(tmp_path)
