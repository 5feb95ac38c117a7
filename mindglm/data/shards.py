"""The files of a prepared dataset: one shard is a safetensors file of arrays and a JSON file of texts.

    index.json               what the dataset is: buckets, encoder hashes, shards, splits, counts. Written last.
    shard-00000.safetensors  arrays of its samples; ragged ones flat beside `<name>_offsets` (int64, samples + 1)
    shard-00000.json         ids, captions, splits, refusals, counts of the shard
    refused.jsonl            {"file", "reason", "detail"} of everything refused

A shard holds pictures of one size. In a dataset of several sizes (buckets) its name says which: shard-00000-96x128. A
shard carries a key, the hash of all that made it, in both of its files: it is reused only when both say so.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from mindglm.checkpoint.tensors import TensorFile, write_tensors
from mindglm.data.drawing import write_json
from mindglm.errors import UserError
from mindglm.recipe import sizes
from mindglm.recipe.sizes import Size

FORMAT = 1
"""Of shards; it is a part of their keys."""
INDEX_FORMAT = 2
"""Of index.json. 1 knew one size, under "height" and "width", and is still read."""
KIND = "mindglm dataset"
RAGGED = ("prompt_ids", "glyph")


def shard_name(number: int, size: Size | None = None) -> str:
    """size: of its pictures, where a dataset has several."""
    return f"shard-{number:05d}" + (f"-{sizes.name(size)}" if size else "")


def key_of(value) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def pack(samples: list[dict]) -> dict[str, np.ndarray]:
    """Per-sample arrays as one array a name: stacked, or flat with offsets for the ragged names."""
    arrays = {}
    for name in samples[0] if samples else ():
        parts = [np.asarray(sample[name]) for sample in samples]
        if name in RAGGED:
            arrays[name] = np.concatenate(parts)
            arrays[f"{name}_offsets"] = np.cumsum([0] + [len(part) for part in parts], dtype=np.int64)
        else:
            arrays[name] = np.stack(parts)
    return arrays


def row_of(file: TensorFile, name: str, row: int) -> np.ndarray:
    """A copy of one sample's array."""
    if name in RAGGED:
        start, stop = file.raw(f"{name}_offsets")[row:row + 2]
        return np.array(file.raw(name)[start:stop])
    return np.array(file.raw(name)[row])


def write_shard(folder: Path, name: str, key: str, arrays: dict[str, np.ndarray], texts: dict) -> None:
    """Write both files of a shard, each whole or not at all; the JSON last."""
    path = folder / f"{name}.safetensors"
    if arrays:
        staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        write_tensors(staging, arrays, {"key": key})
        os.replace(staging, path)
    else:
        path.unlink(missing_ok=True)
    write_json(folder / f"{name}.json", {"key": key, **texts})


def finished_shard(folder: Path, name: str, key: str) -> dict | None:
    """The texts of a shard that was finished under this very key; None when it has to be made."""
    try:
        texts = json.loads((folder / f"{name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(texts, dict) or texts.get("key") != key:
        return None
    if texts["ids"]:
        try:
            if TensorFile(folder / f"{name}.safetensors").metadata.get("key") != key:
                return None
        except UserError:  # missing or cut off: make it again
            return None
    return texts


def read_index(folder: Path) -> dict:
    """index.json of a finished dataset folder. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"dataset {folder}: no such folder; make it with: mindglm prepare --output {folder}")
    path = folder / "index.json"
    if not path.is_file():
        unfinished = any(folder.glob("shard-*.json"))
        raise UserError(f"dataset {folder}: " + (
            "preparation was not finished; run the same `mindglm prepare` command again" if unfinished else
            "not a dataset (no index.json); give the --output folder of `mindglm prepare`"))
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"dataset {folder}: index.json is damaged ({error}); run `mindglm prepare` again") from error
    if not isinstance(index, dict) or index.get("kind") != KIND:
        raise UserError(f"dataset {folder}: index.json is not one of `mindglm prepare`; give its --output folder")
    if index.get("format") not in (1, INDEX_FORMAT):
        raise UserError(f"dataset {folder}: format {index.get('format')}, this version reads 1 and {INDEX_FORMAT}; "
                        "run `mindglm prepare` again")
    return _of_one_size(index) if index["format"] == 1 else index


def _of_one_size(index: dict) -> dict:
    """An index of format 1 as one of today."""
    index, counts = dict(index), {name: len(ordinals) for name, ordinals in index["splits"].items()}
    size = {side: index.pop(side) for side in ("height", "width")}
    return {**index, "format": INDEX_FORMAT, "shards": [{**entry, "bucket": 0} for entry in index["shards"]],
            "buckets": [{**size, **counts, "resized": index["counts"]["resized"]}]}
