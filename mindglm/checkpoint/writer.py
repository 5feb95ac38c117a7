"""Writes a model folder that appears whole or not at all, counting bytes and remembering checksums."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

from mindglm.checkpoint import released, seal
from mindglm.checkpoint.disk import sync, sync_folder, write_all, write_new
from mindglm.checkpoint.released import replace_folder
from mindglm.checkpoint.scan import ModelFolder
from mindglm.checkpoint.tensors import Stream, TensorFile, write_pieces, write_tensors
from mindglm.errors import UserError

_CHUNK = 1 << 20
_SPARE = 64 << 20

OnBytes = Callable[[int], object]


def quiet(total: int):
    """A progress bar that shows nothing: `with progress(total bytes) as on_bytes`."""
    return contextlib.nullcontext(lambda count: None)


class FolderWriter:
    """`with FolderWriter(target, needed) as folder: folder.copy_file(...); folder.finish(sealed=True)`.

    Everything goes into a hidden folder beside `target`, each file fsynced; `finish` renames it. Without `finish`, or
    after an error, it is removed; a killed process leaves it hidden, and the next conversion to `target` removes it.
    """

    def __init__(self, target: str | os.PathLike, needed: int, overwrite: bool = False,
                 on_bytes: OnBytes = lambda count: None):
        """needed: bytes that will be written. overwrite: whether `target` may exist with something in it."""
        self.target = pathlib.Path(target)
        self.entries: dict[str, dict] = {}
        """{relative path: what the seal remembers of the file}"""
        self._on_bytes = on_bytes
        self._staging = self.target.with_name(f".{self.target.name}.{os.getpid()}.tmp")
        check_target(self.target, overwrite)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        free = shutil.disk_usage(self.target.parent).free
        if free < needed + _SPARE:
            raise UserError(f"{self.target}: {needed / 1e9:.2f} GB are needed there, {free / 1e9:.2f} GB are free; "
                            "make room or give another folder")

    def __enter__(self) -> "FolderWriter":
        self._staging.mkdir()
        return self

    def __exit__(self, *error) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Staging folders of processes that are gone."""
        for path in self.target.parent.glob(f".{self.target.name}.*.tmp"):
            process = path.name.split(".")[-2]
            if process.isdigit() and not _lives(int(process)):
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, path: str) -> pathlib.Path:
        assert path not in self.entries, f"{path} is written twice"
        place = self._staging / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def copy_weights(self, file: TensorFile, path: str) -> None:
        """A safetensors file byte for byte."""
        checksums = {}
        with open(file.path, "rb", buffering=0) as source, open(self._place(path), "wb", buffering=0) as out:
            write_all(out, source.read(file.header_bytes))
            for name in file.by_place:
                checksums[name] = write_pieces(out, file.pieces(name), self._on_bytes)
            sync(out)
        self.entries[path] = seal.weights_entry(file, checksums)

    def write_weights(self, streams: Mapping[str, Stream], metadata: Mapping[str, str], path: str) -> None:
        """A safetensors file of tensors on their way."""
        place = self._place(path)
        try:
            checksums = write_tensors(place, streams, metadata, self._on_bytes)
        except OverflowError as error:
            raise UserError(f"{path}: {error}; choose bfloat16 or float32") from error
        self.entries[path] = seal.weights_entry(TensorFile(place), checksums)

    def copy_file(self, source: pathlib.Path, path: str) -> None:
        """Any other file byte for byte."""
        place = self._place(path)
        with open(source, "rb") as file, open(place, "wb", buffering=0) as out:
            while piece := file.read(_CHUNK):
                write_all(out, piece)
            sync(out)
        self.entries[path] = seal.file_entry(place.stat().st_size, seal.file_crc(place))

    def write_bytes(self, content: bytes, path: str) -> None:
        """A small file."""
        place = self._place(path)
        write_new(place, content)
        self.entries[path] = seal.file_entry(len(content), seal.file_crc(place))

    def write_component(self, component: str, config: str, streams: Mapping[str, Stream], dtype: str) -> None:
        """A whole component in shards of the usual size. config: the text of config.json. dtype: of all streams."""
        shapes = {name: stream.shape for name, stream in streams.items()}
        shards = released.shard(component, shapes, dtype)
        for file, names in shards.items():
            self.write_weights({name: streams[name] for name in names}, released.METADATA, f"{component}/{file}")
        for file, text in released.index_files(component, shapes, shards, dtype).items():
            self.write_bytes(text.encode(), f"{component}/{file}")
        self.write_bytes(config.encode(), f"{component}/config.json")

    def copy_rest(self, folder: ModelFolder, component: str) -> None:
        """Everything of a model folder but the weights and config.json of `component`."""
        for other in folder.components:
            if other.path != component:
                for name, file in other.files.items():
                    self.copy_weights(file, folder.relative(other, name))
                if other.index is not None:
                    path = folder.relative(other, other.index)
                    self.copy_file(folder.root / path, path)
        for path in folder.others:
            if path != f"{component}/config.json":
                self.copy_file(folder.root / path, path)

    def finish(self, sealed: bool) -> pathlib.Path:
        """Put the folder in its place. sealed: with mindglm.json. Returns the folder."""
        if sealed:
            self.write_bytes(seal.text(self.entries).encode(), seal.NAME)
        for folder, _, _ in os.walk(self._staging):
            sync_folder(folder)
        if self.target.is_dir() and not any(self.target.iterdir()):
            self.target.rmdir()
        replace_folder(self._staging, self.target)
        return self.target


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def check_target(target: pathlib.Path, overwrite: bool) -> None:
    """UserError when something stands where the folder shall be."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; give a folder that does not exist yet")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UserError(f"{target}: exists and is not empty; give another folder, or --overwrite to replace it")


def check_apart(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """UserError when one folder is inside the other."""
    a, b = pathlib.Path(source).resolve(), pathlib.Path(target).resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(f"{target}: source and destination must be two folders, neither inside the other")
