"""Is a checkpoint whole? Every file read through, every name, shape and checksum checked, all problems at once."""

import json
import os
import zlib

import numpy as np

from mindglm.checkpoint import matching, seal, training
from mindglm.checkpoint.components import COMPONENTS
from mindglm.checkpoint.places import Place, open_place
from mindglm.checkpoint.scan import ComponentFolder, ModelFolder, scan
from mindglm.checkpoint.stored import Checkpoint, Damaged
from mindglm.checkpoint.tensors import to_float32
from mindglm.checkpoint.writer import OnBytes
from mindglm.errors import UserError


def verify(path: str | os.PathLike, step: int | None = None, on_bytes: OnBytes = lambda count: None) -> list[str]:
    """Problems of a model folder, a training checkpoint or a file; [] when it is whole.

    Reads every tensor once: checksums where they are remembered, and values that are not finite.
    """
    try:
        place = open_place(path, step)
    except UserError as error:
        return [str(error)]
    if place.kind == "structure":
        return [f"{path}: describes a model and holds no weights"]
    found = _values(place, on_bytes)
    if place.kind == "training":
        return _training(place) + found
    if place.kind in ("released", "mindglm"):
        folder = scan(place.path)
        return _folder(folder) + found
    return found


def _values(place: Place, on_bytes: OnBytes) -> list[str]:
    """Damaged tensors and those with values that are not finite. Optimizer moments count as well."""
    problems = []
    for label, entries in place.groups.items():
        for name, entry in entries.items():
            crc, wild = 0, 0
            try:
                for piece in entry.file.pieces(name):
                    crc = zlib.crc32(piece, crc)
                    wild = wild + _not_finite(piece, entry.code)
                    on_bytes(piece.nbytes)
            except Damaged as error:
                problems += [str(error)] if str(error) not in problems else []  # one file may be all its tensors
            if entry.crc32 is not None and crc != entry.crc32:
                problems.append(f"{label}: {name} is damaged (crc32 {crc}, expected {entry.crc32})")
            if wild:
                problems.append(f"{label}: {name} holds {wild} values that are not finite")
    return problems


def _not_finite(piece: np.ndarray, code: str) -> int:
    if code not in matching.FLOATING:
        return 0
    values = to_float32(piece) if code == "BF16" else piece
    return values.size - int(np.isfinite(values).sum())


def _training(place: Place) -> list[str]:
    """Damage of the files besides tensors."""
    problems, checkpoint = [], Checkpoint(place.path)
    for name in checkpoint.file_names:
        try:
            checkpoint.file(name)
        except Damaged as error:
            problems.append(str(error))
    try:
        training.read_recipe(checkpoint)
    except UserError as error:
        problems = problems or [str(error)]
    return problems


def _folder(folder: ModelFolder) -> list[str]:
    problems = [f"{folder.root / component.path}: {line}" for component in folder.components
                for line in [*component.faults(), *_total(folder, component)]]
    problems += _agreement(folder)
    if seal.is_sealed(folder.root):
        entries = seal.read(folder.root)
        problems += seal.missing_and_added(entries, folder.all_files())
        for path, entry in entries.items():
            file = folder.root / path
            if "tensors" not in entry and file.is_file():
                problems += seal.differences(path, entry, seal.file_entry(file.stat().st_size, seal.file_crc(file)))
    return problems


def _total(folder: ModelFolder, component: ComponentFolder) -> list[str]:
    """The index counts the bytes that are there."""
    if component.index is None:
        return []
    content = json.loads((folder.root / component.path / component.index).read_text(encoding="utf-8"))
    said = (content.get("metadata") or {}).get("total_size")
    held = sum(file.nbytes(name) for file in component.files.values() for name in file.names)
    return [] if said in (None, held) else [f"{component.index} says total_size {said}, the tensors take {held} bytes"]


def _agreement(folder: ModelFolder) -> list[str]:
    """Numbers that components of one model share."""
    built = {c.path: c.kind.config.from_hf(c.config) for c in folder.components if c.path in COMPONENTS}
    ar, vae, glyph = (built.get(name) for name in ("vision_language_encoder", "vae", "text_encoder"))
    dit = built.get("transformer")
    if dit is None:
        return []
    pairs = [("vision_language_encoder", ar and ar.num_codes, "codes", dit.prior_vq_quantizer_codebook_size),
             ("vae", vae and vae.latent_channels, "latent channels", dit.in_channels),
             ("text_encoder", glyph and glyph.d_model, "feature width", dit.text_embed_dim)]
    return [f"{name} has {what} {value}, transformer expects {wanted}: they come from different models"
            for name, value, what, wanted in pairs if value is not None and value != wanted]
