"""Reads a training checkpoint: any range of any tensor, whichever ranks wrote it, each block checked as it passes."""

import json
import mmap
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mindglm.checkpoint import header
from mindglm.checkpoint import metadata as description
from mindglm.checkpoint.disk import open_regular, read_small
from mindglm.checkpoint.metadata import BLOCK
from mindglm.checkpoint.tensors import THREADS
from mindglm.errors import UserError

TEXT_FILE = 4 << 20
"""Bytes of the largest common.json or recipe.yaml that is read."""
LARGE_FILE = 4 << 30
"""Bytes of the largest file besides tensors (a ledger) that is read."""


class Damaged(UserError):
    """A file of a checkpoint is not as it was written."""


def damaged(path: pathlib.Path, why: object) -> Damaged:
    """The error for a file and what is wrong with it."""
    return Damaged(f"{path}: damaged ({why})")


class Checkpoint:
    """An open checkpoint: only its metadata.json has been read, everything else is read when it is asked for.

    Raises Damaged, naming file and tensor, as soon as something is not as it was written; UserError for a checkpoint
    of another release.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link, expected a folder; put the checkpoint itself in its place")
        path = folder / "metadata.json"
        try:
            self.metadata = description.from_bytes(read_small(path))
        except description.OtherVersion as error:
            raise UserError(f"{folder}: {error}; load it with the mindglm release that wrote it") from error
        except (OSError, ValueError) as error:
            raise damaged(path, error) from error
        self.step = self.metadata.step
        self.kinds = {kind: Tensors(self, tensors) for kind, tensors in self.metadata.tensors.items()}
        """{model | opt | ema: its tensors}"""
        self._maps: dict[str, mmap.mmap] = {}

    @property
    def common(self) -> dict:
        """Counters and the like."""
        try:
            found = json.loads(self.file("common.json", TEXT_FILE))
        except (ValueError, RecursionError) as error:
            raise damaged(self.folder / "common.json", error) from error
        if not isinstance(found, dict):
            raise damaged(self.folder / "common.json", "no table of numbers")
        return found

    @property
    def recipe_text(self) -> str:
        """The resolved recipe of the run that wrote the checkpoint."""
        try:
            return self.file("recipe.yaml", TEXT_FILE).decode()
        except UnicodeDecodeError as error:
            raise damaged(self.folder / "recipe.yaml", error) from error

    @property
    def file_names(self) -> list[str]:
        """All files but those of tensors."""
        return [name for name, file in self.metadata.files.items() if not file.header_bytes]

    def file(self, name: str, limit: int = LARGE_FILE) -> bytes:
        """The content of a file besides tensors, of at most `limit` bytes."""
        wanted = self.metadata.files.get(name)
        if wanted is None:
            raise damaged(self.folder / "metadata.json", f"it lists no {name}")
        try:
            content = read_small(self.folder / name, min(wanted.nbytes, limit))
        except (OSError, ValueError) as error:
            raise damaged(self.folder / name, error) from error
        if len(content) != wanted.nbytes or zlib.crc32(content) != wanted.crc32:
            raise damaged(self.folder / name, f"{len(content)} bytes with crc32 {zlib.crc32(content)}, expected "
                          f"{wanted.nbytes} with {wanted.crc32}")
        return content

    def mapped(self, name: str) -> mmap.mmap:
        """A weight file in memory, its size and header checked once."""
        if name not in self._maps:
            wanted = self.metadata.files[name]
            try:
                with open_regular(self.folder / name) as file:
                    size = os.fstat(file.fileno()).st_size
                    if size != wanted.nbytes:
                        raise ValueError(f"{size} bytes, expected {wanted.nbytes}")
                    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                if zlib.crc32(memoryview(content)[:wanted.header_bytes]) != wanted.crc32:
                    raise ValueError("the header, which names its tensors")
            except (OSError, ValueError) as error:
                raise damaged(self.folder / name, error) from error
            self._maps[name] = content
        return self._maps[name]


class Tensors:
    """The tensors of one kind; read like a TensorFile, whatever files they are in."""

    def __init__(self, checkpoint: Checkpoint, tensors: Mapping[str, description.Tensor]):
        self._checkpoint, self._tensors = checkpoint, tensors
        self.path = checkpoint.folder

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """The file's own code: "F32", "BF16", "I64"..."""
        return self._tensors[name].code

    def size(self, name: str) -> int:
        """Number of values."""
        pieces = self._tensors[name].pieces
        return pieces[-1].stop if pieces else 0

    def files(self, name: str) -> list[str]:
        """Names of the files that hold parts of a tensor."""
        return [piece.file for piece in self._tensors[name].pieces]

    def read(self, name: str, out: np.ndarray, start: int = 0) -> None:
        """Values from `start` on of the flattened tensor into the flat array `out`, of the stored dtype."""
        blocks = list(self._blocks(name, start, start + out.size))

        def copy(block: "_Block") -> None:
            out[block.start - start:block.stop - start] = block.values(name)
            block.forget()

        if len(blocks) < 2:
            for block in blocks:
                copy(block)
            return
        with ThreadPoolExecutor(THREADS) as threads:
            for done in threads.map(copy, blocks):
                assert done is None

    def array(self, name: str) -> np.ndarray:
        """A whole tensor; bfloat16 as uint16."""
        out = np.empty(self.size(name), header.DTYPES[self.dtype(name)])
        self.read(name, out)
        return out.reshape(self.shape(name))

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Values start to stop of the flattened tensor, some megabytes at a time."""
        for block in self._blocks(name, start, self.size(name) if stop is None else stop):
            yield block.values(name).copy()
            block.forget()

    def _blocks(self, name: str, start: int, stop: int) -> Iterator["_Block"]:
        """The checked blocks that hold values start to stop."""
        tensor = self._tensors[name]
        kind = np.dtype(header.DTYPES[tensor.code])
        each = BLOCK // kind.itemsize
        for piece in tensor.pieces:
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low >= high:
                continue
            content = self._checkpoint.mapped(piece.file)
            for number in range((low - piece.start) // each, -(-(high - piece.start) // each)):
                first = piece.start + number * each
                yield _Block(content, self.path / piece.file, kind, piece.offset + number * BLOCK, first,
                             min(first + each, piece.stop), low, high, piece.crc32[number])


class _Block:
    """Bytes with a checksum of their own, of which some are wanted."""

    def __init__(self, content: mmap.mmap, path: pathlib.Path, kind: np.dtype, offset: int, first: int, last: int,
                 low: int, high: int, crc32: int):
        """first to last: values of the block; low to high: those wanted of the tensor."""
        self._content, self._path, self._kind, self._offset, self._crc32 = content, path, kind, offset, crc32
        self._first, self._nbytes = first, (last - first) * kind.itemsize
        self.start, self.stop = max(first, low), min(last, high)

    def values(self, name: str) -> np.ndarray:
        """The wanted values, a view of the mapped file."""
        data = memoryview(self._content)[self._offset:self._offset + self._nbytes]
        if zlib.crc32(data) != self._crc32:
            raise Damaged(f"{self._path}: tensor '{name}' is damaged (from its value {self._first} on: crc32 "
                          f"{zlib.crc32(data)}, expected {self._crc32})")
        wanted = data[(self.start - self._first) * self._kind.itemsize:(self.stop - self._first) * self._kind.itemsize]
        return np.frombuffer(wanted, self._kind)

    def forget(self) -> None:
        """Give the memory back that the mapped bytes take."""
        begin = -(-self._offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (self._offset + self._nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._content.madvise(mmap.MADV_DONTNEED, begin, length)
