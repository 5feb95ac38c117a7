"""The header of a safetensors file, as a stranger may have written it: checked before a byte is believed."""

import json
import math
from collections.abc import Mapping

import numpy as np

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_, "U64": np.uint64, "U32": np.uint32,
}
"""Dtype codes of the format; bfloat16, which NumPy lacks, is held as raw uint16."""
MAX_HEADER = 16 << 20
"""Bytes: some 100,000 tensors. The released files need 0.2 MB."""
_MAX_DIMENSIONS, _MAX_VALUES = 32, 1 << 60


def item_bytes(code: str) -> int:
    """Bytes of one value of a dtype code."""
    return np.dtype(DTYPES[code]).itemsize


def length_of(prefix: bytes, file_bytes: int) -> int:
    """Bytes of the header that the first 8 bytes of a file announce; ValueError when that cannot be."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= file_bytes - 8:
        raise ValueError(f"a header of {length} bytes in a file of {file_bytes} bytes")
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes, expected at most {MAX_HEADER}")
    return length


def parse(text: bytes, data_bytes: int) -> tuple[dict[str, dict], dict[str, str]]:
    """({tensor: {"dtype", "shape", "data_offsets"}}, metadata) of a header; ValueError unless all of it makes sense.

    data_bytes: bytes of the file behind the header. The tensors must cover them exactly: bytes that belong to none, or
    to two, mean damage.
    """
    try:
        header = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("a header nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("a header that is no table of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that are no texts")
    for name, entry in header.items():
        _check(name, entry)
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != position:
            raise ValueError(f"tensor '{name}' begins at byte {begin} of the data, expected {position}")
        position = end
    if position > data_bytes:
        raise ValueError(f"tensors of {position} bytes in {data_bytes} bytes of data")
    if position != data_bytes:
        raise ValueError(f"{data_bytes - position} bytes behind the last tensor")
    return header, metadata


def once(pairs: list[tuple[str, object]]) -> dict:
    """A json object whose names differ: of two equal ones, two readers may take two."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that stands twice")
    return found


def _check(name: str, entry: object) -> None:
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor '{name}' without dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor '{name}' of the unknown dtype {entry['dtype']!r}")
    wanted = values_of(name, entry["shape"]) * item_bytes(entry["dtype"])
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(place) is int for place in offsets):
        raise ValueError(f"tensor '{name}' without a byte range")
    if offsets[0] < 0 or offsets[1] - offsets[0] != wanted:
        raise ValueError(f"tensor '{name}' of {wanted} bytes has the byte range {offsets[0]}-{offsets[1]}")


def values_of(name: str, shape: object) -> int:
    """Number of values of a shape read from json; ValueError when it is none."""
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or \
            not all(type(size) is int and 0 <= size < _MAX_VALUES for size in shape):
        raise ValueError(f"tensor '{name}' has no possible shape")
    if math.prod(size for size in shape if size) >= _MAX_VALUES:
        raise ValueError(f"tensor '{name}' has more values than any file")
    return math.prod(shape)
