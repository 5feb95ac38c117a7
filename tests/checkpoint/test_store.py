"""Training checkpoints: whole or absent, of no layout, read by byte range, the newest and the best kept."""

import os

import numpy as np
import pytest

from mindglm.checkpoint import metadata, store, training
from mindglm.checkpoint.stored import Checkpoint
from mindglm.checkpoint.tensors import TensorFile
from mindglm.errors import UserError
from tests.checkpoint import example
from tests.checkpoint.example import is_of_step, save, save_sharded


def test_what_is_saved_comes_back(tmp_path):
    folder = save(tmp_path, 120)
    assert folder.name == "iteration_00000120"
    assert {path.name for path in folder.iterdir()} == {
        "metadata.json", "common.json", "recipe.yaml", "ledger.jsonl", *(
            f"run-{kind}-0000000-0000001.safetensors" for kind in ("model", "opt", "ema"))}
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text().strip() == "120"
    assert is_of_step(store.load(tmp_path), 120)
    model = TensorFile(folder / "run-model-0000000-0000001.safetensors")  # other readers see ordinary files
    assert {name: model.shape(name) for name in model.names} == example.SHAPES


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_what_ranks_save_is_what_one_process_saves(tmp_path, ranks):
    """Every tensor cut into ranges; no file holds a whole one under its name, and no reader needs to know."""
    folder = save_sharded(tmp_path, 5, ranks)
    written = sorted(path.name for path in folder.glob("run-opt-*"))
    assert written == [f"run-opt-{rank:07d}-{ranks:07d}.safetensors" for rank in range(ranks)]
    names = {name for file in written for name in TensorFile(folder / file).names}
    assert "adam_m.norm" not in names and any(name.startswith("adam_m.norm[") for name in names)
    assert is_of_step(store.load(tmp_path), 5)


def test_any_range_is_read_and_only_its_blocks(tmp_path, monkeypatch):
    """All ranges of a tensor in three files and several blocks; bytes of blocks that are not asked for may be gone."""
    monkeypatch.setattr(metadata, "BLOCK", 16)
    monkeypatch.setattr(store, "BLOCK", 16)
    monkeypatch.setattr("mindglm.checkpoint.stored.BLOCK", 16)
    values = np.arange(47, dtype=np.float32)
    folder = save_sharded(tmp_path, 1, 3, {"model": {"w": values, "half": np.arange(9, dtype=np.uint16)}})
    stored = Checkpoint(folder).kinds["model"]
    assert (stored.shape("w"), stored.dtype("w"), stored.dtype("half")) == ((47,), "F32", "BF16")
    for start in range(48):
        for stop in range(start, 48):
            out = np.full(stop - start, -1, np.float32)
            stored.read("w", out, start)
            assert np.array_equal(out, values[start:stop])
            assert np.array_equal(np.concatenate([out[:0], *stored.pieces("w", start, stop)]), values[start:stop])
    assert stored.array("half").tolist() == list(range(9))
    piece = Checkpoint(folder).metadata.tensors["model"]["w"].pieces[1]
    spoilt = folder / piece.file
    data = bytearray(spoilt.read_bytes())
    data[piece.offset + 4 * 5] ^= 1  # the sixth value of the second file: in its second block of four values
    spoilt.write_bytes(data)
    opened, damaged = Checkpoint(folder).kinds["model"], range(piece.start + 4, piece.start + 8)
    for i in range(47):
        out = np.zeros(1, np.float32)
        if i in damaged:
            with pytest.raises(UserError, match=f"{piece.file}: tensor 'w' is damaged"):
                opened.read("w", out, i)
        else:
            opened.read("w", out, i)
            assert out[0] == i


def test_ranks_that_leave_values_out_or_write_elsewhere_do_not_commit(tmp_path):
    first, second = example.cut(example.arrays(1), 2)
    folder = store.staging(tmp_path, 1)
    store.begin(folder)
    listings = [store.write_part(folder, first, rank=0, ranks=2), store.write_part(folder, second, rank=1, ranks=2)]
    texts = store.texts({}, "")
    with pytest.raises(RuntimeError, match=r"parts of tensor '.*' \[4, 3\] do not make a whole: \[\(0, 6\)\]"):
        store.commit(folder, listings[:1], texts)
    with pytest.raises(RuntimeError, match="do not make a whole"):
        store.commit(folder, [*listings, listings[1]], texts)
    os.unlink(folder / "mindglm-opt-0000001-0000002.safetensors")
    with pytest.raises(RuntimeError, match="output_dir must be a folder that all nodes share"):
        store.commit(folder, listings, texts)
    assert store.steps(tmp_path) == []


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert store.steps(tmp_path) == [15, 20]
    assert is_of_step(store.load(tmp_path, 15), 15)
    assert not list(tmp_path.glob(".*"))
    save(tmp_path, 25, keep=1)
    assert store.steps(tmp_path) == [25]
    for step in (30, 35, 40):
        save(tmp_path, step, keep=5)
    assert store.steps(tmp_path) == [25, 30, 35, 40]


def test_the_best_by_validation_loss_are_kept_too(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: float("nan"), 6: 5.0}
    for step, loss in losses.items():
        save(tmp_path, step, keep=1, keep_best=2, validation_loss=loss)
    assert store.steps(tmp_path) == [2, 4, 6]
    save(tmp_path, 7, keep=1, keep_best=2, validation_loss=1.0)  # of equal ones the later
    assert store.steps(tmp_path) == [2, 7]
    (tmp_path / "iteration_00000002" / "common.json").write_text("{")
    save(tmp_path, 8, keep=1, keep_best=2)
    assert store.steps(tmp_path) == [7, 8]


def test_staging_leftovers_and_foreign_folders_are_no_checkpoints(tmp_path):
    save(tmp_path, 3)
    (tmp_path / ".iteration_00000009.tmp").mkdir()
    (tmp_path / "iteration_00000008").mkdir()  # no metadata.json: not complete
    (tmp_path / "iteration_00000008" / "notes.txt").write_text("mine")
    (tmp_path / "iteration_other").mkdir()
    assert store.steps(tmp_path) == [3] and store.load(tmp_path, 3).step == 3
    for path in (tmp_path, tmp_path / "iteration_00000008"):  # not 3 in its place, unasked
        with pytest.raises(UserError, match="iteration_00000008/metadata.json: damaged"):
            Checkpoint(training.find(path))
    save(tmp_path, 8)
    assert store.steps(tmp_path) == [3, 8]
    assert not (tmp_path / ".iteration_00000009.tmp").exists()
    assert (tmp_path / "iteration_00000008.damaged" / "notes.txt").read_text() == "mine"


def test_a_damaged_checkpoint_is_set_aside(tmp_path):
    for attempt in ("damaged", "damaged2"):
        folder = save(tmp_path, 3)
        assert store.set_aside(tmp_path, 3) == tmp_path / f"{folder.name}.{attempt}"
        assert store.steps(tmp_path) == []


def test_other_version_and_absence_are_said(tmp_path):
    assert store.steps(tmp_path / "nowhere") == []
    with pytest.raises(UserError, match="no checkpoint"):
        store.load(tmp_path)
    folder = save(tmp_path, 7)
    with pytest.raises(UserError, match="of step 8; found steps \\[7\\]"):
        store.load(tmp_path, 8)
    (folder / "metadata.json").write_text('{"version": 1, "step": 7, "files": {}}')
    with pytest.raises(UserError, match="version 1, expected 2; load it with the mindglm release"):
        store.load(tmp_path)


def test_files_of_a_run_must_have_plain_names_of_their_own(tmp_path):
    for name in ("../up", "a/b", "", ".."):
        with pytest.raises(ValueError, match="not the name of a file in this folder"):
            store.texts({}, "", {name: b""})
    with pytest.raises(AssertionError, match="the store itself uses"):
        store.texts({}, "", {"common.json": b""})
