"""Files that a stranger made: refused with the reason, in bounded memory, without reading outside the folder."""

import json
import os
import pathlib
import re
import shutil
import tracemalloc
import zlib

import numpy as np
import pytest

from mindglm.checkpoint import released, store, training
from mindglm.checkpoint.scan import scan, walk
from mindglm.checkpoint.stored import Checkpoint
from mindglm.checkpoint.tensors import TensorFile
from mindglm.errors import UserError
from mindglm.recipe import differences
from tests.checkpoint import example
from tests.golden import REPO

DIT = "transformer"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def bounded(action) -> None:
    """Run `action` with less than 40 MB of new memory."""
    tracemalloc.start()
    try:
        action()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6, peak


def weights(path: pathlib.Path, header, data: bytes = bytes(16), length: int | None = None) -> None:
    """A safetensors file of a header that is text, or anything for json."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(shape, offsets=(0, 16), dtype="F32", **more) -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets), **more}}


HEADERS = {
    "a header of 10 GB that is not there": (b"{}", "a header of 10000000000 bytes"),
    "two negative sizes": (entry([-2, -2]), "no possible shape"),
    "a size that overflows 64 bits": (entry([2**32, 2**32], (0, 0)), "more values than any file"),
    "nothing, times very much": (entry([0, 2**61], (0, 0)), "no possible shape"),
    "too many dimensions": (entry([1] * 99 + [4]), "no possible shape"),
    "a size that is no whole number": (entry([4.0]), "no possible shape"),
    "a size that is true": (entry([True, 4]), "no possible shape"),
    "a range that is no whole number": (entry([4], (0, 16.0)), "without a byte range"),
    "a negative range": (entry([4], (-16, 0)), "has the byte range -16-0"),
    "a range that runs backwards": (entry([4], (16, 0)), "has the byte range 16-0"),
    "a range of three": (entry([4], (0, 8, 16)), "without a byte range"),
    "a range behind the end": (entry([8], (0, 32)), "tensors of 32 bytes in 16 bytes"),
    "ranges that overlap": ({**entry([4]), "y": entry([2], (8, 16))["x"]}, "'y' begins at byte 8 of the data"),
    "a name that stands twice": (b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"x":'
                                 b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "stands twice"),
    "an unknown dtype": (entry([4], dtype="PICKLE"), "unknown dtype"),
    "a dtype that is a list": (entry([4], dtype=["F32"]), "unknown dtype"),
    "a key more": (entry([4], code="import os"), "without dtype, shape and data_offsets"),
    "metadata that are no texts": ({"__metadata__": {"a": {}}, **entry([4])}, "metadata that are no texts"),
    "a list": ([], "no table of tensors"),
    "a tensor that is a number": ({"x": 7}, "without dtype"),
    "nesting without end": (b'{"x":' + b"[" * 500_000, "nested too deeply|not a whole"),
    "no text at all": (b"\xff\xfe\x00{}", "not a whole safetensors file"),
    "a number of a million digits": (b'{"x":' + b"9" * 1_000_000 + b"}", "not a whole safetensors file"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_safetensors_header(tmp_path, what):
    header, reason = HEADERS[what]
    weights(tmp_path / "f.safetensors", header, length=10**10 if "10 GB" in what else None)

    def refused():
        with pytest.raises(UserError, match=f"f.safetensors.*({reason})"):
            TensorFile(tmp_path / "f.safetensors")

    bounded(refused)


def test_files_that_really_are_huge(tmp_path):
    """Sparse files: a header of 10 GB, an index and a metadata.json of 10 GB."""
    weights(tmp_path / "f.safetensors", b"{" + b" " * 99, length=10**10)
    os.truncate(tmp_path / "f.safetensors", 10**10 + 8)
    (tmp_path / "iteration_00000001").mkdir()
    for path in (tmp_path / "iteration_00000001" / "metadata.json", tmp_path / "config.json"):
        path.touch()
        os.truncate(path, 10**10)

    def refused():
        with pytest.raises(UserError, match="a header of 10000000000 bytes, expected at most"):
            TensorFile(tmp_path / "f.safetensors")
        with pytest.raises(UserError, match="metadata.json: damaged .has 10000000000 bytes"):
            store.load(tmp_path)
        with pytest.raises(UserError, match="config.json.*has 10000000000 bytes"):
            released.read_json(tmp_path / "config.json")

    bounded(refused)


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="not an ordinary file"):
        TensorFile(tmp_path / "f.safetensors")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b"])
def test_an_index_names_only_files_beside_it(tmp_path, name):
    shutil.copytree(REPO, tmp_path / "m")
    index = tmp_path / "m" / DIT / INDEX
    content = json.loads(index.read_text())
    content["weight_map"]["proj_out.weight"] = name
    index.write_text(json.dumps(content))
    for read in (lambda: scan(tmp_path / "m"), lambda: released.read_component(tmp_path / "m", DIT)):
        with pytest.raises(UserError, match=re.escape(f"{name!r} is not the name of a file in this folder")):
            read()


def test_links_may_not_lead_out_of_a_model_folder(tmp_path):
    """Neither weights nor other files, which an export would copy; a link within, and a Hugging Face cache, may."""
    shutil.copytree(REPO, tmp_path / "m")
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "m" / "readme").symlink_to(secret)
    with pytest.raises(UserError, match="readme: is a link to .*secret, outside of"):
        scan(tmp_path / "m")
    (tmp_path / "m" / "readme").unlink()
    (tmp_path / "m" / "readme").symlink_to("model_index.json")
    assert "readme" in scan(tmp_path / "m").others
    file = tmp_path / "m" / DIT / "diffusion_pytorch_model-00002-of-00002.safetensors"
    os.rename(file, tmp_path / "out.safetensors")
    file.symlink_to(tmp_path / "out.safetensors")
    for read in (lambda: scan(tmp_path / "m"), lambda: released.read_component(tmp_path / "m", DIT)):
        with pytest.raises(UserError, match="00002.safetensors: is a link to .*outside of"):
            read()
    file.unlink()
    (tmp_path / "m" / "vae" / "up").symlink_to("..")
    with pytest.raises(UserError, match="up: is a link to a folder"):
        list(walk(tmp_path / "m"))


def test_a_hugging_face_cache_is_a_model_folder(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(REPO, snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        os.rename(path, blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert scan(snapshot).total_bytes == scan(REPO).total_bytes
    assert set(released.read_component(snapshot, DIT)) == set(released.read_component(REPO, DIT))
    assert scan(snapshot / DIT).total_bytes == sum(array.nbytes for array in
                                                   released.read_component_raw(REPO, DIT).values())


def forged(folder: pathlib.Path, change) -> None:
    """metadata.json changed by someone who knows how its checksum is made."""
    content = json.loads((folder / "metadata.json").read_bytes())
    del content["crc32"]
    change(content)
    rest = json.dumps(content).encode()[1:]
    (folder / "metadata.json").write_bytes(b'{"crc32": "%010d",\n' % zlib.crc32(rest) + rest)


def piece(content: dict, number: int = 0) -> dict:
    return content["tensors"]["model"]["norm"]["pieces"][number]


def to_file(content: dict, name: str) -> None:
    content["files"][name] = content["files"].pop(piece(content)["file"])
    for tensors in content["tensors"].values():
        for tensor in tensors.values():
            for listed in tensor["pieces"]:
                listed["file"] = name if listed["file"] not in content["files"] else listed["file"]


FORGERIES = {
    "a path out of the folder": (lambda c: to_file(c, "../../secret"), "not the name of a file in this folder"),
    "an absolute path": (lambda c: to_file(c, "/etc/passwd"), "not the name of a file in this folder"),
    "a negative offset": (lambda c: piece(c).update(offset=-8), "-8 where a number from 0"),
    "an offset into the header": (lambda c: piece(c).update(offset=8), "which has data from"),
    "an offset behind the end": (lambda c: piece(c).update(offset=10**15), "which has data from"),
    "a negative start": (lambda c: piece(c).update(values=[-1, 3]), "-1 where a number from 0"),
    "values that run backwards": (lambda c: piece(c, 1).update(values=[3, 1]), "values 3 to 1"),
    "values left out": (lambda c: c["tensors"]["model"]["norm"]["pieces"].pop(), "3 of 7 values"),
    "values twice": (lambda c: piece(c, 1).update(values=[2, 7]), "values 2 to 7 where those from 3 on"),
    "bytes of two tensors": (lambda c: c["tensors"]["model"]["bias"]["pieces"][0].update(offset=piece(c, 1)["offset"]),
                             "begins at byte [0-9]+ of run-model-.*expected"),
    "a size of many terabytes": (lambda c: c["tensors"]["model"]["norm"].update(shape=[10**14]), "7 of 1000"),
    "a negative size": (lambda c: c["tensors"]["model"]["norm"].update(shape=[-7]), "no possible shape"),
    "no checksums": (lambda c: piece(c).update(crc32=[]), "0 checksums for"),
    "a checksum of 40 bits": (lambda c: piece(c).update(crc32=[2**40]), "no crc32"),
    "an unknown dtype": (lambda c: c["tensors"]["model"]["norm"].update(dtype="OBJECT"), "unknown dtype"),
    "a file that is not listed": (lambda c: piece(c).update(file="other"), "not the list of a checkpoint's tensors"),
    "a list of tensors": (lambda c: c.update(tensors=[]), "not the list of a checkpoint's tensors"),
    "a step that is a text": (lambda c: c.update(step="7"), "where a number from 0"),
    "other blocks": (lambda c: c.update(block=1), "blocks of 1 bytes"),
    "nothing": (lambda c: c.clear(), "property name"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_metadata(tmp_path, what):
    change, reason = FORGERIES[what]
    folder = example.save_sharded(tmp_path, 1, 2)
    forged(folder, lambda content: None)
    assert example.is_of_step(store.load(tmp_path), 1)  # the forgery itself works
    forged(folder, change)

    def refused():
        with pytest.raises(UserError, match=f"metadata.json: damaged .*({reason})"):
            store.load(tmp_path)

    bounded(refused)


def test_a_stored_recipe_that_unfolds_without_end(tmp_path):
    """Aliases of aliases: 2**40 keys from 40 lines. Neither resuming nor the tools unfold them."""
    lines = ["a0: &a0 {x: 1, y: 1}"] + [f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40)]
    for text in ("\n".join(lines) + "\n", "a: " + "[" * 5000 + "\n"):
        store.save(tmp_path, len(store.steps(tmp_path)) + 1, {"model": {"w": np.zeros(1, np.float32)}}, {}, text)
        checkpoint = Checkpoint(store.locate(tmp_path))
        for read in (lambda: differences.of_resume(checkpoint.recipe_text, "seed: 1\n"),
                     lambda: training.read_recipe(checkpoint)):
            def refused(read=read):
                with pytest.raises(UserError, match="recipe"):
                    read()

            bounded(refused)


def test_no_array_of_objects_gets_into_a_checkpoint(tmp_path):
    folder = store.staging(tmp_path, 1)
    store.begin(folder)
    with pytest.raises(KeyError):
        store.write_part(folder, {"model": [store.Part("x", (1,), np.array([{}]))]})
