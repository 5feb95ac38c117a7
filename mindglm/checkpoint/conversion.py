"""Released folder <-> mindglm folder: every tensor once, byte for byte unless a dtype is asked for.

A mindglm folder (see seal.py) is the released layout under our parameter names, which are the released ones, checked
against the configs and listed with checksums. So a file whose names and dtypes stay is copied; any other is rewritten
tensor by tensor. Nothing is held whole: memory stays at some megabytes whatever the size of the model.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from mindglm.checkpoint import matching, seal
from mindglm.checkpoint.scan import ComponentFolder, ModelFolder, scan
from mindglm.checkpoint.tensors import Stream, TensorFile, cast, item_bytes
from mindglm.checkpoint.writer import FolderWriter, check_apart, check_target, quiet
from mindglm.models.names import Pair, SameRows

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Dtype names of the configs -> dtype codes of the files."""
DTYPES = (*CODES, "released")
"""What --dtype takes: one for all tensors, or for each component what the release stores."""

_CURE = "Mend or download the folder again; a config.json of another model leads here too."


def convert(source: str | os.PathLike, target: str | os.PathLike, to: str, dtype: str | None = None,
            overwrite: bool = False, progress=quiet) -> pathlib.Path:
    """Converts a whole model folder, or one component; returns `target`, which appears whole or not at all.

    to: "mindglm" (from the released names, sealed) | "hf" (from ours, checked against the seal if there is one).
    dtype: one of DTYPES, None keeps what is stored. progress: `with progress(bytes) as on_bytes`.
    Raises UserError for a folder that does not fit its configs (all faults in one message), damaged or unreadable
    files, no room, or a target that exists.
    """
    assert to in ("mindglm", "hf"), to
    check_apart(source, target)
    check_target(pathlib.Path(target), overwrite)
    folder = scan(source)
    matching.refuse({str(folder.root / c.path): c.faults(ours=to == "hf") + _alias_faults(c)
                     for c in folder.components}, _CURE)
    entries = seal.read(folder.root) if to == "hf" and seal.is_sealed(folder.root) else None
    if entries is not None:
        _check_list(folder, entries)
    codes = {c.path: _code(c, dtype) for c in folder.components}
    total = sum(_bytes_after(c, codes[c.path]) for c in folder.components)
    with progress(total) as on_bytes, FolderWriter(target, total, overwrite, on_bytes) as writer:
        changed = set()
        for component in folder.components:
            changed |= _write_component(writer, folder, component, to, codes[component.path], entries)
        for path in folder.others:
            if path not in changed:
                writer.copy_file(folder.root / path, path)
        if entries is not None:
            _check_copies(writer, entries, changed)
        return writer.finish(sealed=to == "mindglm")


def _code(component: ComponentFolder, dtype: str | None) -> str | None:
    return None if dtype is None else CODES[component.kind.dtype if dtype == "released" else dtype]


def _bytes_after(component: ComponentFolder, code: str | None) -> int:
    return sum(int(np.prod(shape, dtype=np.int64)) * item_bytes(code or stored)
               for stored, shape in component.header().values())


def _alias_faults(component: ComponentFolder) -> list[str]:
    """An alias beside its tensor must hold the same values."""
    found = []
    where = {name: file for file in component.files.values() for name in file.names}
    for alias, name in component.kind.aliases.items():
        if alias in where and name in where:
            if seal.tensor_crc(where[alias], alias) != seal.tensor_crc(where[name], name):
                found.append(f"{alias} must equal {name}, of which it is another name, and differs")
    return found


def _write_component(writer: FolderWriter, folder: ModelFolder, component: ComponentFolder, to: str, code: str | None,
                     entries: dict | None) -> set[str]:
    """Weights, index and config of one component; returns the paths that were not copied as they are."""
    pairs = {(pair.theirs if to == "mindglm" else pair.ours): pair for pair in component.pairs()}
    changed, grown = set(), 0
    for name, file in component.files.items():
        path = folder.relative(component, name)
        if all(pairs[tensor].identical and code in (None, file.dtype(tensor)) for tensor in file.names):
            writer.copy_weights(file, path)
            continue
        checked = entries[path]["tensors"] if entries is not None else {}
        streams = dict(converted(pairs[tensor], file, to, code or file.dtype(tensor), checked.get(tensor))
                       for tensor in file.names)
        writer.write_weights(streams, file.metadata, path)
        changed.add(path)
        grown += sum(s.nbytes for s in streams.values()) - sum(file.nbytes(tensor) for tensor in file.names)
    if component.index is not None:
        path = folder.relative(component, component.index)
        text = (folder.root / path).read_text(encoding="utf-8")
        renamed = {name: (pair.ours if to == "mindglm" else pair.theirs) for name, pair in pairs.items()}
        writer.write_bytes(_index(text, renamed, grown).encode(), path)
        changed.add(path)
    if grown or any(code not in (None, stored) for stored, _ in component.header().values()):
        path = folder.relative(component, "config.json")
        text = (folder.root / path).read_text(encoding="utf-8")
        writer.write_bytes(config_with_dtype(text, code).encode(), path)
        changed.add(path)
    return changed


def converted(pair: Pair, file: TensorFile, to: str, code: str, entry: dict | None = None) -> tuple[str, Stream]:
    """(name, stream) of a tensor under its other name. entry: the seal's, checked while the source is read."""
    name = pair.theirs if to == "mindglm" else pair.ours

    def pieces() -> Iterator[np.ndarray]:
        read = file.pieces(name) if entry is None else seal.checked_pieces(file, name, entry["crc32"])
        if pair.rows == SameRows():
            return (cast(piece, code) for piece in read)
        whole = np.concatenate(list(read)).reshape(file.shape(name))
        return iter([cast(pair.rows.to_ours(whole) if to == "mindglm" else pair.rows.to_theirs(whole), code)])

    if to == "mindglm":
        return pair.ours, Stream(code, pair.shape, pieces)
    return pair.theirs, Stream(code, pair.their_shape, pieces)


def _index(text: str, renamed: dict[str, str], grown: int) -> str:
    """The index json after tensors were renamed and `grown` bytes were added; the same text if nothing changed."""
    if any(name != new for name, new in renamed.items()):
        content = json.loads(text)
        content["weight_map"] = dict(sorted((renamed[n], file) for n, file in content["weight_map"].items()))
        text = json.dumps(content, indent=2) + "\n"
    return re.sub(r'("total_size"\s*:\s*)(\d+)', lambda m: f"{m[1]}{int(m[2]) + grown}", text, count=1)


def config_with_dtype(text: str, code: str) -> str:
    """config.json with the new dtype wherever it names one; everything else as it was."""
    name = next(name for name, known in CODES.items() if known == code)
    return re.sub(r'("(?:torch_)?dtype"\s*:\s*)"(?:float32|bfloat16|float16|float64)"', rf'\1"{name}"', text)


_RESEAL = (f"If the change was meant, convert it with --from hf --to mindglm again, which writes a new {seal.NAME}; "
           "otherwise make the folder anew.")


def _check_list(folder: ModelFolder, entries: dict) -> None:
    """The folder holds the files of its seal, small files unchanged, weight files with the same tensors."""
    weights = {folder.relative(c, name): file for c in folder.components for name, file in c.files.items()}
    lines = seal.missing_and_added(entries, folder.all_files())
    for path, entry in entries.items():
        if path in weights and "tensors" in entry:
            expected = {name: {**wanted, "crc32": 0} for name, wanted in entry["tensors"].items()}
            found = seal.weights_entry(weights[path], dict.fromkeys(weights[path].names, 0))
            lines += seal.differences(path, {"tensors": expected}, found)
        elif (folder.root / path).is_file():
            size = (folder.root / path).stat().st_size
            lines += seal.differences(path, entry, seal.file_entry(size, seal.file_crc(folder.root / path)))
    matching.refuse({str(folder.root): lines}, _RESEAL)


def _check_copies(writer: FolderWriter, entries: dict, changed: set[str]) -> None:
    """Weights that were copied are what the seal remembers; those that were rewritten were checked on the way."""
    damaged = [line for path, entry in entries.items() if path not in changed
               for line in seal.differences(path, entry, writer.entries[path])]
    matching.refuse({"damaged": damaged}, _RESEAL)
