"""`mindglm.json`: the list of a model folder's files with the checksum of every tensor.

A *mindglm folder* is a folder in the released layout, checked name by name against its configs, plus this list. It is
what `pretrained_model_dir` and `generate --model` read, and nothing in it hides weights from other libraries: without
the list it is the released folder again, byte for byte.
"""

import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from mindglm.checkpoint.tensors import TensorFile
from mindglm.errors import UserError

NAME = "mindglm.json"
_VERSION = 1
_CHUNK = 1 << 20


def text(entries: Mapping[str, dict]) -> str:
    """The content of mindglm.json. entries: {relative path: `weights_entry` or `file_entry`}."""
    return json.dumps({"version": _VERSION, "files": dict(sorted(entries.items()))}, indent=1) + "\n"


def weights_entry(file: TensorFile, checksums: Mapping[str, int]) -> dict:
    """What is remembered of a safetensors file."""
    return {"bytes": file.path.stat().st_size, "tensors": {
        name: {"dtype": file.dtype(name), "shape": list(file.shape(name)), "crc32": checksums[name]}
        for name in file.names}}


def file_entry(size: int, crc32: int) -> dict:
    """What is remembered of any other file."""
    return {"bytes": size, "crc32": crc32}


def is_sealed(root: pathlib.Path) -> bool:
    return (root / NAME).is_file()


def read(root: pathlib.Path) -> dict[str, dict]:
    """{relative path: entry} of a sealed folder. Raises UserError when the list cannot be read."""
    path = root / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, files = content["version"], content["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable list of files ({error!r}); make the folder anew") from error
    if version != _VERSION:
        raise UserError(f"{path}: version {version}, expected {_VERSION}; use the mindglm release that wrote it")
    return files


def file_crc(path: pathlib.Path, on_bytes: Callable[[int], object] = lambda count: None) -> int:
    """crc32 of a whole file, read piece by piece."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            crc = zlib.crc32(piece, crc)
            on_bytes(len(piece))
    return crc


def tensor_crc(file: TensorFile, name: str, on_bytes: Callable[[int], object] = lambda count: None) -> int:
    """crc32 of a tensor, read piece by piece."""
    crc = 0
    for piece in file.pieces(name):
        crc = zlib.crc32(piece, crc)
        on_bytes(piece.nbytes)
    return crc


def checked_pieces(file: TensorFile, name: str, crc32: int) -> Iterator[np.ndarray]:
    """The values of a tensor; UserError at their end when they are not those that were remembered."""
    crc = 0
    for piece in file.pieces(name):
        crc = zlib.crc32(piece, crc)
        yield piece
    if crc != crc32:
        raise UserError(f"{file.path}: tensor '{name}' is damaged (crc32 {crc}, expected {crc32}); make the folder "
                        "anew")


def differences(path: str, entry: Mapping, found: Mapping) -> list[str]:
    """How a file differs from what was remembered of it: a sentence for each damaged tensor. Both are entries."""
    if "tensors" not in entry or "tensors" not in found:
        return [] if entry == found else [f"{path} was changed after it was written"]
    wanted, got = entry["tensors"], found["tensors"]
    if set(wanted) != set(got):
        return [f"{path} holds other tensors than were written: {sorted(set(wanted) ^ set(got))[:5]}"]
    return [f"{path}: tensor '{name}' is damaged ({got[name]}, expected {wanted[name]})"
            for name in wanted if wanted[name] != got[name]]


def missing_and_added(entries: Mapping[str, dict], present: Iterable[str]) -> list[str]:
    """Files that are gone, and files that came later."""
    present = set(present)
    return ([f"{path} is missing" for path in sorted(set(entries) - present)]
            + [f"{path} was added" for path in sorted(present - set(entries))])
