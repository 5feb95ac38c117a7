"""metadata.json of a training checkpoint: which bytes of which file are which values of which tensor.

    {"crc32": "0123456789",
    "version": 2, "step": 120, "block": 4194304,
    "files": {file: {"bytes", "header_bytes", "crc32"}},
    "tensors": {kind: {tensor: {"dtype", "shape", "pieces": [{"file", "values": [a, b], "offset", "crc32": [...]}]}}}}

The first line holds the checksum of all the others. Of a weight file, "crc32" is that of its header, and each piece has
one for every `block` bytes, so that whoever reads a part can check it; of other files it is that of everything
(header_bytes 0). A piece is a range of the flattened tensor: ranks write what they own and no rank holds a whole one.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from mindglm.checkpoint import header

VERSION = 2
BLOCK = 4 << 20
"""Bytes of a tensor that share a checksum."""
_FIRST_LINE = re.compile(rb'\{"crc32": "(\d{10})",\n')


class OtherVersion(ValueError):
    """Written by another release."""


@dataclass(frozen=True)
class File:
    """A file of the checkpoint."""

    nbytes: int
    header_bytes: int
    """Of a weight file: where its data begin. 0 for other files."""
    crc32: int
    """Of the header, or of the whole file where there is none."""


@dataclass(frozen=True)
class Piece:
    """Consecutive values of a flattened tensor, and where their bytes are."""

    file: str
    start: int
    stop: int
    offset: int
    """Byte of the file at which value `start` is."""
    crc32: tuple[int, ...]
    """Of each BLOCK bytes."""


@dataclass(frozen=True)
class Tensor:
    """A global tensor."""

    code: str
    """Dtype as safetensors calls it."""
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    """In order, without gaps."""


@dataclass(frozen=True)
class Metadata:
    """All of a checkpoint."""

    step: int
    files: Mapping[str, File]
    tensors: Mapping[str, Mapping[str, Tensor]]
    """{kind: {name: tensor}}"""


def to_bytes(metadata: Metadata) -> bytes:
    """The file."""
    files = {name: {"bytes": file.nbytes, "header_bytes": file.header_bytes, "crc32": file.crc32}
             for name, file in metadata.files.items()}
    tensors = {kind: {name: {"dtype": tensor.code, "shape": list(tensor.shape), "pieces": [
        {"file": piece.file, "values": [piece.start, piece.stop], "offset": piece.offset, "crc32": list(piece.crc32)}
        for piece in tensor.pieces]} for name, tensor in listed.items()} for kind, listed in metadata.tensors.items()}
    listed = ",\n".join(f"{json.dumps(kind)}: {_lines(entries)}" for kind, entries in tensors.items())
    rest = (f'"version": {VERSION}, "step": {metadata.step}, "block": {BLOCK},\n'
            f'"files": {_lines(files)},\n"tensors": {{\n{listed}}}}}\n').encode()
    return f'{{"crc32": "{zlib.crc32(rest):010d}",\n'.encode() + rest


def _lines(entries: Mapping[str, dict]) -> str:
    """A json object, one entry a line."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "}"


def from_bytes(text: bytes) -> Metadata:
    """The checked content of the file. ValueError for anything that does not make sense."""
    first = _FIRST_LINE.match(text)
    if first is None:
        raise _other(text)
    if zlib.crc32(memoryview(text)[first.end():]) != int(first[1]):
        raise ValueError("its checksum does not fit")
    try:
        content = json.loads(text, object_pairs_hook=header.once)
        if content["version"] != VERSION:
            raise OtherVersion(f"checkpoint format version {content['version']}, expected {VERSION}")
        if content["block"] != BLOCK:
            raise ValueError(f"blocks of {content['block']} bytes, expected {BLOCK}")
        files = {name: _file(name, entry) for name, entry in content["files"].items()}
        tensors = {kind: {name: _tensor(name, entry, files) for name, entry in listed.items()}
                   for kind, listed in content["tensors"].items()}
        _check_no_overlap(files, tensors)
        return Metadata(_count(content["step"]), files, tensors)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the list of a checkpoint's tensors ({error!r})") from None


def _other(text: bytes) -> ValueError:
    """What a file without our first line is: of the first format, or damaged."""
    try:
        version = json.loads(text)["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ValueError("its first line holds no checksum")
    if version == VERSION or type(version) is not int:
        return ValueError("its first line holds no checksum")
    return OtherVersion(f"checkpoint format version {version}, expected {VERSION}")


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a number from 0 is expected")
    return value


def _sum(value: object) -> int:
    if _count(value) >> 32:
        raise ValueError(f"{value} is no crc32")
    return value


def plain_name(name: str) -> str:
    """A file beside metadata.json, nowhere else; ValueError for any other path."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in this folder")
    return name


def _file(name: str, entry: Mapping) -> File:
    found = File(_count(entry["bytes"]), _count(entry["header_bytes"]), _sum(entry["crc32"]))
    if found.header_bytes > min(found.nbytes, header.MAX_HEADER + 8):
        raise ValueError(f"{plain_name(name)}: a header of {found.header_bytes} bytes")
    plain_name(name)
    return found


def _tensor(name: str, entry: Mapping, files: Mapping[str, File]) -> Tensor:
    if entry["dtype"] not in header.DTYPES:
        raise ValueError(f"tensor '{name}' of the unknown dtype {entry['dtype']!r}")
    size, item = header.values_of(name, entry["shape"]), header.item_bytes(entry["dtype"])
    pieces, place = [], 0
    for listed in entry["pieces"]:
        start, stop = (_count(value) for value in listed["values"])
        piece = Piece(listed["file"], start, stop, _count(listed["offset"]), tuple(map(_sum, listed["crc32"])))
        nbytes, file = (stop - start) * item, files[piece.file]
        if start != place or stop < start:
            raise ValueError(f"tensor '{name}': values {start} to {stop} where those from {place} on are expected")
        if piece.offset < file.header_bytes or piece.offset + nbytes > file.nbytes or not file.header_bytes:
            raise ValueError(f"tensor '{name}': bytes {piece.offset} to {piece.offset + nbytes} of {piece.file}, which "
                             f"has data from {file.header_bytes} to {file.nbytes}")
        if len(piece.crc32) != -(-nbytes // BLOCK):
            raise ValueError(f"tensor '{name}': {len(piece.crc32)} checksums for {nbytes} bytes")
        pieces.append(piece)
        place = stop
    if place != size:
        raise ValueError(f"tensor '{name}': {place} of {size} values")
    return Tensor(entry["dtype"], tuple(entry["shape"]), tuple(pieces))


def _check_no_overlap(files: Mapping[str, File], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Every data byte of a weight file belongs to one tensor."""
    taken: dict[str, list[tuple[int, int, str]]] = {name: [] for name, file in files.items() if file.header_bytes}
    for listed in tensors.values():
        for name, tensor in listed.items():
            for piece in tensor.pieces:
                end = piece.offset + (piece.stop - piece.start) * header.item_bytes(tensor.code)
                taken[piece.file].append((piece.offset, end, name))
    for file, ranges in taken.items():
        place = files[file].header_bytes
        for begin, end, name in sorted(ranges):
            if begin != place:
                raise ValueError(f"tensor '{name}' begins at byte {begin} of {file}, expected {place}")
            place = end
        if place != files[file].nbytes:
            raise ValueError(f"{files[file].nbytes - place} bytes of {file} behind the last tensor")
