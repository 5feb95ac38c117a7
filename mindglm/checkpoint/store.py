"""Training checkpoints: whole or absent, checked block by block on the way in, of no layout of ranks.

    <root>/iteration_00000120/{metadata.json, common.json, recipe.yaml, <prefix>-<kind>-<rank>-<ranks>.safetensors}
    <root>/latest_checkpointed_iteration.txt

kind is `model`, `opt` or `ema`. Ranks write what they own of the global tensors (`write_part`) into one hidden staging
folder, fsynced; then one of them adds metadata.json (metadata.py) last and renames the folder (`commit`). A run killed
at any instant leaves at most a staging folder that nobody reads and the next save removes.
"""

import json
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mindglm.checkpoint.disk import read_small, sync_folder, write_new, write_text
from mindglm.checkpoint.metadata import BLOCK, File, Metadata, Piece, Tensor, plain_name, to_bytes
from mindglm.checkpoint.stored import Checkpoint
from mindglm.checkpoint.tensors import code_of, write_blocks
from mindglm.errors import UserError

LATEST = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"iteration_(\d{8,})")


@dataclass(frozen=True)
class Part:
    """Consecutive values of a global tensor, all of them or a range of the flattened tensor."""

    name: str
    shape: tuple[int, ...]
    """Of the global tensor."""
    values: np.ndarray
    start: int = 0
    """Which value of the flattened tensor comes first."""


@dataclass(frozen=True)
class Listing:
    """What one rank wrote; small, to be sent to the rank that commits."""

    files: dict[str, File]
    tensors: dict[str, dict[str, Tensor]]
    """{kind: {name: tensor with this rank's pieces alone}}"""


@dataclass(frozen=True)
class Loaded:
    """A training checkpoint, all of it in memory."""

    folder: pathlib.Path
    step: int
    """Optimizer steps done."""
    tensors: dict[str, dict[str, np.ndarray]]
    """{kind: {global tensor name: array}}."""
    common: dict
    """Counters: step_num, global_step, global_batch_size, skipped..."""
    recipe_text: str
    """The resolved recipe of the run that wrote it."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Further files of the run, e.g. its ledger."""


# ---- writing


def save(root: str | os.PathLike, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]], common: Mapping,
         recipe_text: str, prefix: str = "mindglm", keep: int = 2, keep_best: int = 0,
         files: Mapping[str, bytes] | None = None) -> pathlib.Path:
    """Write the checkpoint of `step` as one process that owns everything; returns its folder.

    The pointer moves to it, and older ones are removed (`tidy`). OSError when the disk refuses; what was there before
    is as it was.
    """
    folder = staging(root, step)
    try:
        begin(folder)
        parts = {kind: [Part(name, array.shape, array) for name, array in arrays.items()]
                 for kind, arrays in tensors.items()}
        listing = write_part(folder, parts, prefix)
        final = commit(folder, [listing], texts(common, recipe_text, files))
    except BaseException:
        abandon(folder)
        raise
    tidy(root, step, keep, keep_best)
    return final


def texts(common: Mapping, recipe_text: str, files: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The files of a checkpoint besides tensors."""
    found = {"common.json": (json.dumps(dict(common), indent=2) + "\n").encode(), "recipe.yaml": recipe_text.encode(),
             **{plain_name(name): content for name, content in (files or {}).items()}}
    assert len(found) == 2 + len(files or {}) and "metadata.json" not in found, "a name that the store itself uses"
    return found


def staging(root: str | os.PathLike, step: int) -> pathlib.Path:
    """The folder in which the checkpoint of `step` is written; all ranks know it by this function."""
    return pathlib.Path(root) / f".iteration_{step:08d}.tmp"


def begin(folder: pathlib.Path) -> None:
    """Make the staging folder, empty, and remove what killed saves left. By one rank, before all others write."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    folder.mkdir()


def remove_leftovers(root: pathlib.Path) -> None:
    """Staging folders of killed saves, and checkpoints whose removal was cut short."""
    for leftover in root.glob(".iteration_*"):
        shutil.rmtree(leftover)


def write_part(folder: pathlib.Path, parts: Mapping[str, Iterable[Part]], prefix: str = "mindglm", rank: int = 0,
               ranks: int = 1) -> Listing:
    """Write what this rank owns, a file a kind, each fsynced."""
    files, tensors = {}, {}
    for kind, owned in parts.items():
        owned = {_key(part): part for part in owned}
        if not owned:
            continue
        name = f"{prefix}-{kind}-{rank:07d}-{ranks:07d}.safetensors"
        arrays = {key: part.values.reshape(part.shape if _is_whole(part) else -1) for key, part in owned.items()}
        written = write_blocks(folder / name, arrays, {"format": "mindglm", "kind": kind}, BLOCK)
        files[name] = File(written.nbytes, written.header_bytes, written.header_crc32)
        tensors[kind] = {part.name: Tensor(code_of(part.values), tuple(part.shape), (
            Piece(name, part.start, part.start + part.values.size, written.offsets[key], tuple(written.sums[key])),))
            for key, part in owned.items()}
    return Listing(files, tensors)


def _is_whole(part: Part) -> bool:
    return part.values.size == math.prod(part.shape)


def _key(part: Part) -> str:
    """Its name in the file: a part must not look like a whole tensor to other readers."""
    return part.name if _is_whole(part) else f"{part.name}[{part.start}:{part.start + part.values.size}]"


def commit(folder: pathlib.Path, listings: Iterable[Listing], contents: Mapping[str, bytes]) -> pathlib.Path:
    """Turn a staging folder in which all ranks have written into a checkpoint; returns its folder. By one rank.

    contents: as `texts` gives them. RuntimeError when ranks do not write to one folder, or left values out.
    """
    root, step = folder.parent, int(folder.name.split("_")[1].split(".")[0])
    final = root / f"iteration_{step:08d}"
    assert not (final / "metadata.json").exists(), f"checkpoint of step {step} exists"
    files, tensors = _joined(listings)
    unseen = [name for name, file in files.items()
              if not (folder / name).is_file() or (folder / name).stat().st_size != file.nbytes]
    if unseen and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is gone, with what was written there")
    if unseen:
        raise RuntimeError(f"{folder} does not hold {unseen[:3]} as other ranks wrote them: output_dir must be a "
                           "folder that all nodes share")
    for name, content in contents.items():
        write_new(folder / name, content)
        files[name] = File(len(content), 0, zlib.crc32(content))
    write_new(folder / "metadata.json", to_bytes(Metadata(step, files, tensors)))
    sync_folder(folder)
    if final.exists():
        set_aside(root, step)
    os.rename(folder, final)
    sync_folder(root)
    return final


def _joined(listings: Iterable[Listing]) -> tuple[dict[str, File], dict[str, dict[str, Tensor]]]:
    """All ranks' files, and tensors whose pieces are complete and in order."""
    files: dict[str, File] = {}
    found: dict[str, dict[str, list[Tensor]]] = {}
    for listing in listings:
        files.update(listing.files)
        for kind, tensors in listing.tensors.items():
            for name, tensor in tensors.items():
                found.setdefault(kind, {}).setdefault(name, []).append(tensor)
    joined = {kind: {name: _one(name, parts) for name, parts in tensors.items()} for kind, tensors in found.items()}
    return files, joined


def _one(name: str, parts: list[Tensor]) -> Tensor:
    pieces = sorted((piece for part in parts for piece in part.pieces), key=lambda piece: (piece.start, piece.stop))
    ends = [0, *(piece.stop for piece in pieces)]
    if len({(part.code, part.shape) for part in parts}) > 1 or ends[-1] != math.prod(parts[0].shape) or \
            any(piece.start != end for piece, end in zip(pieces, ends)):
        raise RuntimeError(f"the ranks' parts of tensor '{name}' {list(parts[0].shape)} do not make a whole: "
                           f"{[(piece.start, piece.stop) for piece in pieces]}")
    return Tensor(parts[0].code, parts[0].shape, tuple(pieces))


def abandon(folder: pathlib.Path) -> None:
    """Remove the staging folder of a save that failed, as far as the disk lets it."""
    shutil.rmtree(folder, ignore_errors=True)


def tidy(root: str | os.PathLike, written: int, keep: int, keep_best: int = 0) -> None:
    """Move the pointer to checkpoint `written`; remove all but the newest `keep` and the `keep_best` of least
    validation loss (common.json's validation_loss). The one just written always stays."""
    root = pathlib.Path(root)
    write_text(root / LATEST, f"{written}\n")
    there = steps(root)
    others = [step for step in there if step != written]
    losses = {step: loss for step in there if math.isfinite(loss := _loss(root, step))}
    best = sorted(losses, key=lambda step: (losses[step], -step))[:keep_best]
    kept = {written, *others[max(len(others) - (keep - 1), 0):], *best}
    for step in there:
        folder = root / f"iteration_{step:08d}"
        if step not in kept and not folder.is_symlink():
            doomed = root / f".{folder.name}.old"  # renamed first: a torn removal must not look complete
            os.rename(folder, doomed)
            sync_folder(root)
            shutil.rmtree(doomed)


def _loss(root: pathlib.Path, step: int) -> float:
    """The validation loss of a checkpoint; nan when it has none or cannot be read."""
    try:
        loss = json.loads(read_small(root / f"iteration_{step:08d}" / "common.json")).get("validation_loss")
    except (OSError, ValueError, AttributeError, RecursionError):
        return math.nan
    return float(loss) if isinstance(loss, (int, float)) else math.nan


# ---- reading


def steps(root: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending; staging folders do not count."""
    root = pathlib.Path(root)
    return [step for step in named(root) if (root / f"iteration_{step:08d}" / "metadata.json").exists()]


def named(root: str | os.PathLike) -> list[int]:
    """As `steps`, with those that have lost their metadata.json: damaged, for no save that is cut short leaves one."""
    root = pathlib.Path(root)
    if not root.is_dir():
        return []
    return sorted(int(_FOLDER.fullmatch(path.name)[1]) for path in root.iterdir() if is_named(path))


def is_named(folder: pathlib.Path) -> bool:
    """Whether a folder has the name of a checkpoint, which it gets when it is whole."""
    return _FOLDER.fullmatch(folder.name) is not None and folder.is_dir()


def locate(root: str | os.PathLike, step: int | None = None) -> pathlib.Path:
    """The folder of the newest checkpoint under `root`, or of `step`; UserError when there is none.

    The newest folder counts, not the pointer file: a run killed between the rename and the pointer has lost nothing.
    """
    root = pathlib.Path(root)
    found = named(root)
    if not found or (step is not None and step not in found):
        which = "" if step is None else f" of step {step}"
        raise UserError(f"{root}: no checkpoint{which}; found steps {found}")
    return root / f"iteration_{found[-1] if step is None else step:08d}"


def load(root: str | os.PathLike, step: int | None = None) -> Loaded:
    """The newest checkpoint under `root`, or that of `step`, everything read and checked.

    Raises UserError when there is none, or naming the damaged file and tensor.
    """
    checkpoint = Checkpoint(locate(root, step))
    tensors = {kind: {name: stored.array(name) for name in stored.names} for kind, stored in checkpoint.kinds.items()}
    files = {name: checkpoint.file(name) for name in checkpoint.file_names}
    return Loaded(checkpoint.folder, checkpoint.step, tensors, checkpoint.common, checkpoint.recipe_text,
                  {name: content for name, content in files.items() if name not in ("common.json", "recipe.yaml")})


def set_aside(root: str | os.PathLike, step: int) -> pathlib.Path:
    """Rename a damaged or torn checkpoint so that nobody takes it for one again; returns where it is now."""
    root = pathlib.Path(root)
    folder = root / f"iteration_{step:08d}"
    names = (f"{folder.name}.damaged{number}" for number in ["", *range(2, 1000)])
    target = next(root / name for name in names if not (root / name).exists())
    os.rename(folder, target)
    sync_folder(root)
    return target
