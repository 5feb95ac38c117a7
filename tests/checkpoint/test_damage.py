"""Promise 4: an altered checkpoint is never loaded, and what is damaged is named."""

import os
import re
import shutil

import numpy as np
import pytest

from mindglm.checkpoint import store
from mindglm.errors import UserError
from tests.checkpoint import example


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of few bytes, in two shards."""
    first = store.Part("w", (3,), np.array([1.5, -2], np.float32))
    second = store.Part("w", (3,), np.array([7], np.float32), 2)
    moment = store.Part("adam_m.w", (3,), np.array([1, 2, 3], np.float32))
    staging = store.staging(tmp_path, 1)
    store.begin(staging)
    listings = [store.write_part(staging, {"model": [first], "opt": [moment]}, "run", 0, 2),
                store.write_part(staging, {"model": [second]}, "run", 1, 2)]
    return store.commit(staging, listings, store.texts({"step": 1}, "seed: 1\n", {"ledger.jsonl": b"{}\n"}))


def test_any_byte_that_differs_in_any_file_is_refused(folder, tmp_path):
    """Every byte in turn, two ways each; the message names the file, and the tensor where a tensor is hit."""
    flipped = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        begin = 8 + int.from_bytes(whole[:8], "little") if path.suffix == ".safetensors" else len(whole)
        tensor = "adam_m.w" if "-opt-" in path.name else "w"
        for place in range(len(whole)):
            for mask in (1, 0xFF):
                spoilt = bytearray(whole)
                spoilt[place] ^= mask
                path.write_bytes(spoilt)
                what = rf".*tensor '{tensor}' is damaged" if place >= begin else ".*damaged"
                with pytest.raises(UserError, match=re.escape(str(path)) + what):
                    store.load(tmp_path)
                flipped += 1
        path.write_bytes(whole)
    assert flipped > 2500 and store.load(tmp_path).step == 1


@pytest.mark.parametrize("how", ["cut", "longer", "gone", "empty", "link", "pipe", "folder", "other"])
def test_files_that_are_not_what_was_written(folder, tmp_path, how):
    for path in sorted(folder.iterdir()):
        if path.name == "metadata.json" and how == "gone":
            continue  # then it is no checkpoint
        shutil.copytree(folder, tmp_path / "kept")
        whole = path.read_bytes()
        path.unlink()
        make = {"cut": lambda: path.write_bytes(whole[:-1]), "longer": lambda: path.write_bytes(whole + b" "),
                "gone": lambda: None, "empty": lambda: path.touch(), "pipe": lambda: os.mkfifo(path),
                "link": lambda: path.symlink_to(tmp_path / "kept" / path.name), "folder": lambda: path.mkdir(),
                "other": lambda: path.write_bytes(bytes(len(whole)))}[how]
        make()
        with pytest.raises(UserError, match=re.escape(str(path)) + ".*damaged"):
            store.load(tmp_path)
        shutil.rmtree(folder)
        os.rename(tmp_path / "kept", folder)
    assert store.load(tmp_path).step == 1


def test_a_checkpoint_that_is_a_link_is_refused_and_not_removed(tmp_path):
    example.save(tmp_path / "elsewhere", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "iteration_00000001").symlink_to(tmp_path / "elsewhere" / "iteration_00000001")
    with pytest.raises(UserError, match="is a link, expected a folder"):
        store.load(tmp_path / "run")
    example.save(tmp_path / "run", 2, keep=1)
    assert store.steps(tmp_path / "run") == [1, 2] and store.load(tmp_path / "elsewhere").step == 1
