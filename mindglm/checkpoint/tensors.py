"""safetensors files without a framework: memory-mapped reading, streamed writing, bfloat16 as raw uint16.

NumPy has no bfloat16. In this package an array of dtype uint16 *is* raw bfloat16: `to_float32` widens it exactly,
`to_bfloat16` rounds to the nearest value, ties to even, as torch and MindSpore do.

The writer lays a file out as the public safetensors library does (metadata first, wide dtypes first, then names in
order, header padded with spaces to 8 bytes), so that a released file that is read and written again has the same bytes.
"""

import collections
import concurrent.futures
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mindglm.checkpoint import header
from mindglm.checkpoint.disk import open_regular, sync, write_all
from mindglm.checkpoint.header import DTYPES, item_bytes
from mindglm.errors import UserError

_CODES = {np.dtype(kind): code for code, kind in DTYPES.items()}
# The library's order of dtypes inside a file, widest first; the same order keeps round trips byte-exact.
_RANK = {code: rank for rank, code in enumerate(
    ["U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"])}
_CHUNK = 1 << 20  # stays in the processor's cache between reading, summing and writing
_PIECES_WAITING = 8
THREADS = min(4, os.cpu_count() or 1)
"""That take checksums of blocks."""


@dataclass(frozen=True)
class Stream:
    """A tensor on its way into a file, piece by piece: never held whole."""

    code: str
    """The file's own dtype code: "F32", "BF16", "I64"..."""
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[np.ndarray]]
    """Gives the values in order, as arrays of any shape."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * item_bytes(self.code)


def code_of(array: np.ndarray) -> str:
    """The dtype code under which an array is stored."""
    return _CODES[array.dtype]


def cast(array: np.ndarray, code: str) -> np.ndarray:
    """Floating values as dtype `code`, bfloat16 being raw uint16 on either side.

    OverflowError when a finite value has no finite counterpart in float16.
    """
    if _CODES[array.dtype] == code:
        return array
    if code == "BF16":
        return to_bfloat16(array)
    values = to_float32(array) if array.dtype == np.uint16 else array
    with np.errstate(over="ignore"):
        out = values.astype(DTYPES[code], copy=False)
    if code == "F16" and np.isfinite(values).sum() != np.isfinite(out).sum():
        raise OverflowError(f"values up to {np.abs(values[np.isfinite(values)]).max():g} do not fit float16")
    return out


def to_float32(array: np.ndarray) -> np.ndarray:
    """float32 values of `array`; uint16 is taken as raw bfloat16 (exact). float32 comes back as it is."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Raw bfloat16 (uint16) of a float array: round to nearest, ties to even; NaN stays NaN. uint16 passes."""
    if array.dtype == np.uint16:
        return array
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16).reshape(array.shape)


def checksum(array: np.ndarray) -> int:
    """crc32 of the array's bytes."""
    return zlib.crc32(_bytes(array))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class TensorFile:
    """One safetensors file, memory-mapped: a tensor is read when it is asked for.

    Raises UserError naming the file (and the tensor) when the file is cut off or its header makes no sense.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._entries, self.metadata, self._start = self._read_header()
        self._map = np.memmap(self.path, np.uint8, "r") if self._entries else None

    def _read_header(self):
        try:
            with open_regular(self.path, follow_links=True) as file:
                size = os.fstat(file.fileno()).st_size
                length = header.length_of(file.read(8), size)
                text = file.read(length)
            entries, metadata = header.parse(text, size - 8 - length)
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file; expected a safetensors file") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{self.path}: not a whole safetensors file ({error}); copy it again") from error
        return entries, metadata, 8 + length

    @property
    def header_bytes(self) -> int:
        """Where the data begin."""
        return self._start

    @property
    def by_place(self) -> list[str]:
        """Tensor names in the order of their bytes."""
        return sorted(self._entries, key=lambda name: (*self._entries[name]["data_offsets"], name))

    @property
    def names(self) -> list[str]:
        """Tensor names in the order of the file."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> str:
        """The file's own code: "F32", "BF16", "I64"..."""
        return self._entries[name]["dtype"]

    def nbytes(self, name: str) -> int:
        begin, end = self._entries[name]["data_offsets"]
        return end - begin

    def raw(self, name: str) -> np.ndarray:
        """A read-only view of the tensor in its stored dtype; bfloat16 comes as uint16."""
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        data = self._map[self._start + begin:self._start + end]
        kind = np.dtype(DTYPES[entry["dtype"]])
        if (self._start + begin) % kind.itemsize:
            data = data.copy()  # old writers did not pad the header; a view would be unaligned
        return np.asarray(data).view(kind).reshape(entry["shape"])

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Values start to stop (of the flattened tensor) in its stored dtype, some megabytes at a time.

        Read, not mapped: what has been handed out is not counted to this process any more.
        """
        entry = self._entries[name]
        kind = np.dtype(DTYPES[entry["dtype"]])
        stop = math.prod(entry["shape"]) if stop is None else stop
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start + entry["data_offsets"][0] + start * kind.itemsize)
            while start < stop:
                count = min(stop - start, _CHUNK // kind.itemsize)
                piece = np.fromfile(file, kind, count)
                if piece.size != count:
                    raise UserError(f"{self.path}: ends inside tensor '{name}'; copy it again")
                yield piece
                start += count

    def stream(self, name: str, code: str | None = None) -> Stream:
        """The tensor on its way into another file, cast to dtype `code` if one is given."""
        code = code or self.dtype(name)
        return Stream(code, self.shape(name), lambda: (cast(piece, code) for piece in self.pieces(name)))

    def float32(self, name: str) -> np.ndarray:
        """A float32 copy of a floating tensor."""
        return np.array(to_float32(self.raw(name)))


@dataclass(frozen=True)
class Written:
    """A safetensors file as it was written: what a reader needs to find and to check its bytes."""

    nbytes: int
    header_bytes: int
    """Where the data begin."""
    header_crc32: int
    """Of everything before the data."""
    offsets: dict[str, int]
    """{tensor: where it begins in the file}"""
    sums: dict[str, list[int]]
    """{tensor: crc32 of each block of its bytes}"""


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray | Stream],
                  metadata: Mapping[str, str] | None = None,
                  on_bytes: Callable[[int], object] = lambda count: None) -> dict[str, int]:
    """Write one safetensors file, fsynced; returns {tensor name: crc32}. Writes in place: stage it yourself.

    uint16 arrays are stored as BF16. on_bytes hears how many bytes of data have been written since its last call.
    """
    streams = {name: value if isinstance(value, Stream) else _stream_of(value) for name, value in tensors.items()}
    text, offsets, end = _header(streams, metadata)
    checksums = {}
    with open(path, "wb", buffering=0) as file:
        write_all(file, text)
        for name in offsets:
            checksums[name] = write_pieces(file, streams[name].pieces(), on_bytes)
        assert file.tell() == end, f"{path}: a tensor gave another number of values than its shape"
        sync(file)
    return checksums


def write_blocks(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str],
                 block: int) -> Written:
    """As write_tensors, with a checksum for each `block` bytes of a tensor, so that a part of it can be checked.

    Threads take the sums while the file is written: zlib releases the interpreter.
    """
    text, offsets, end = _header({name: _stream_of(array) for name, array in arrays.items()}, metadata)
    sums = {}
    with open(path, "wb", buffering=0) as file, concurrent.futures.ThreadPoolExecutor(THREADS) as summing:
        write_all(file, text)
        for name in offsets:
            data = _bytes(arrays[name])
            parts = [data[start:start + block] for start in range(0, data.size, block)]
            sums[name] = [summing.submit(zlib.crc32, part) for part in parts]
            for part in parts:
                write_all(file, part)
        sync(file)
        sums = {name: [future.result() for future in futures] for name, futures in sums.items()}
    return Written(end, len(text), zlib.crc32(text), offsets, sums)


def _header(streams: Mapping[str, Stream],
            metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int], int]:
    """(everything before the data, {tensor: where it begins in the file}, bytes of the file), in the file's order."""
    head = {"__metadata__": dict(metadata)} if metadata else {}
    place, offsets = 0, {}
    for name in sorted(streams, key=lambda name: (_RANK[streams[name].code], name)):
        offsets[name] = place
        place = place + streams[name].nbytes
        head[name] = {"dtype": streams[name].code, "shape": list(streams[name].shape),
                      "data_offsets": [offsets[name], place]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    return text, {name: len(text) + at for name, at in offsets.items()}, len(text) + place


def _stream_of(array: np.ndarray) -> Stream:
    def pieces():
        data = _bytes(array)
        return (data[start:start + _CHUNK] for start in range(0, data.size, _CHUNK))

    return Stream(_CODES[array.dtype], array.shape, pieces)


def write_pieces(file, pieces: Iterable[np.ndarray], on_bytes: Callable[[int], object]) -> int:
    """Append arrays to an open unbuffered file; returns the crc32 of all of them.

    The sum is taken in a thread of its own while the next piece is read and written: zlib releases the interpreter.
    """
    crc, waiting = 0, collections.deque()

    def add(data: np.ndarray) -> None:
        nonlocal crc
        crc = zlib.crc32(data, crc)

    with concurrent.futures.ThreadPoolExecutor(1) as summing:
        for piece in pieces:
            data = _bytes(piece)
            waiting.append(summing.submit(add, data))
            write_all(file, data)
            on_bytes(data.size)
            if len(waiting) > _PIECES_WAITING:
                waiting.popleft().result()
    return crc
