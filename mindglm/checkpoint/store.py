"""Training checkpoints: whole or absent, checked tensor by tensor on the way in.

    <root>/iteration_00000120/{metadata.json, common.json, recipe.yaml, <prefix>-<kind>-0000000-0000001.safetensors}
    <root>/latest_checkpointed_iteration.txt

kind is `model`, `opt` or `ema`. A checkpoint is written in a hidden staging folder, fsynced, given its metadata.json
(every tensor's shape, dtype and crc32) last, and renamed; a run killed at any instant leaves at most a staging folder
that nobody reads and the next save removes. Tensors carry global names: a checkpoint belongs to no layout of ranks.
"""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindglm.checkpoint.tensors import TensorFile, checksum, sync_folder, write_tensors, write_text
from mindglm.errors import UserError

LATEST = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"iteration_(\d{8})")
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A loaded training checkpoint."""

    folder: pathlib.Path
    step: int
    """Optimizer steps done."""
    tensors: dict[str, dict[str, np.ndarray]]
    """{kind: {global tensor name: read-only array}}."""
    common: dict
    """Counters: step_num, global_step, global_batch_size, skipped..."""
    recipe_text: str
    """The resolved recipe of the run that wrote it."""


def save(root: str | os.PathLike, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]], common: Mapping,
         recipe_text: str, prefix: str = "mindglm", keep: int = 2) -> pathlib.Path:
    """Write the checkpoint of `step`, move the pointer to it, remove all but the newest `keep`; returns its folder.

    The step must be a new one: two renames could not replace a checkpoint without an instant in which it is nowhere.
    """
    assert step not in steps(root), f"checkpoint of step {step} exists"
    root = pathlib.Path(root)
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".iteration_*"):
        shutil.rmtree(leftover)
    final = root / f"iteration_{step:08d}"
    if final.exists():
        shutil.rmtree(final)  # without metadata.json: not a checkpoint
    staging = root / f".{final.name}.{os.getpid()}.tmp"
    staging.mkdir()
    files = {}
    for kind, arrays in tensors.items():
        name = f"{prefix}-{kind}-0000000-0000001.safetensors"
        write_tensors(staging / name, arrays, {"format": "mindglm", "kind": kind})
        files[name] = {"kind": kind, "bytes": (staging / name).stat().st_size, "tensors": {
            key: {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": checksum(array)}
            for key, array in arrays.items()}}
    write_text(staging / "common.json", json.dumps(dict(common), indent=2) + "\n")
    write_text(staging / "recipe.yaml", recipe_text)
    metadata = {"version": _VERSION, "step": step, "files": files}
    write_text(staging / "metadata.json", json.dumps(metadata, indent=1) + "\n")
    sync_folder(staging)
    os.rename(staging, final)
    sync_folder(root)
    write_text(root / LATEST, f"{step}\n")
    _retain(root, keep, step)
    return final


def _retain(root: pathlib.Path, keep: int, written: int) -> None:
    """Remove all but the newest `keep` checkpoints, never the one just written, and what a kill left half removed."""
    older = [step for step in steps(root) if step != written]
    for step in older[:max(len(older) - (keep - 1), 0)]:
        folder = root / f"iteration_{step:08d}"
        doomed = root / f".{folder.name}.{os.getpid()}.old"  # renamed first: a torn removal must not look complete
        os.rename(folder, doomed)
    for doomed in root.glob(".iteration_*.old"):
        shutil.rmtree(doomed)


def steps(root: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending; staging folders do not count."""
    root = pathlib.Path(root)
    if not root.is_dir():
        return []
    found = (_FOLDER.fullmatch(path.name) for path in root.iterdir() if (path / "metadata.json").exists())
    return sorted(int(match[1]) for match in found if match)


def load(root: str | os.PathLike, step: int | None = None) -> Checkpoint:
    """The newest complete checkpoint under `root`, or that of `step`, every tensor checked against its crc32.

    Raises UserError when there is none, or naming the damaged file or tensor. The newest complete folder counts, not
    the pointer file: a run killed between the rename and the pointer has lost nothing.
    """
    folder = locate(root, step)
    meta = metadata(folder)
    tensors = {entry["kind"]: _load_file(folder / name, entry) for name, entry in meta["files"].items()}
    return Checkpoint(folder, meta["step"], tensors, read_json(folder / "common.json"),
                      (folder / "recipe.yaml").read_text(encoding="utf-8"))


def locate(root: str | os.PathLike, step: int | None = None) -> pathlib.Path:
    """The folder of the newest complete checkpoint under `root`, or of `step`; UserError when there is none."""
    root = pathlib.Path(root)
    found = steps(root)
    if not found or (step is not None and step not in found):
        which = "" if step is None else f" of step {step}"
        raise UserError(f"{root}: no complete checkpoint{which}; found steps {found}")
    return root / f"iteration_{found[-1] if step is None else step:08d}"


def metadata(folder: pathlib.Path) -> dict:
    """The metadata.json of a checkpoint; UserError when it cannot be read or is of another version."""
    meta = read_json(folder / "metadata.json")
    if meta.get("version") != _VERSION:
        raise UserError(f"{folder}: checkpoint format version {meta.get('version')}, expected {_VERSION}; "
                        "load it with the mindglm release that wrote it")
    return meta


def read_json(path: pathlib.Path) -> dict:
    """A json file of a checkpoint; UserError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {_CURE}") from error


_CURE = "remove this iteration_ folder to continue from an earlier checkpoint"


def open_file(path: pathlib.Path, entry: dict) -> TensorFile:
    """A weight file of a checkpoint, its tensor names those of its entry in metadata.json."""
    try:
        file = TensorFile(path)
    except UserError as error:
        raise UserError(f"{error}; {_CURE}") from error
    if set(file.names) != set(entry["tensors"]):
        differing = sorted(set(file.names) ^ set(entry["tensors"]))
        raise UserError(f"{path}: holds other tensors than its metadata.json says: {differing[:5]}; {_CURE}")
    return file


def _load_file(path: pathlib.Path, entry: dict) -> dict[str, np.ndarray]:
    file = open_file(path, entry)
    arrays = {}
    for name, wanted in entry["tensors"].items():
        array = file.raw(name)
        if [list(array.shape), str(array.dtype)] != [wanted["shape"], wanted["dtype"]]:
            raise UserError(f"{path}: tensor '{name}' is {array.dtype}{list(array.shape)}, its metadata.json says "
                            f"{wanted['dtype']}{wanted['shape']}; {_CURE}")
        if checksum(array) != wanted["crc32"]:
            raise UserError(f"{path}: tensor '{name}' is damaged (crc32 {checksum(array)}, expected "
                            f"{wanted['crc32']}); {_CURE}")
        arrays[name] = array
    return arrays
