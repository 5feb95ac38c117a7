"""A disk that forgets what was not fsynced: notes the calls of a save and builds what a power failure may leave."""

import builtins
import contextlib
import copy
import itertools
import os
import pathlib
import shutil

from tests.checkpoint.killed_saves import CALLS


class File:
    """Content as processes see it, and as it is on the disk."""

    def __init__(self, content: bytes = b"", durable: bool = False):
        self.content = content
        self.durable = content if durable else b""


class Folder(dict):
    """{name: File or Folder} as processes see it; `durable` as it is on the disk."""

    def __init__(self, entries=(), durable: bool = False):
        super().__init__(entries)
        self.durable = dict(self) if durable else {}

    def is_synced(self) -> bool:
        return {name: id(entry) for name, entry in self.items()} == \
            {name: id(entry) for name, entry in self.durable.items()}


def read(path: pathlib.Path) -> Folder:
    """What is at `path`, all of it on the disk."""
    return Folder({entry.name: read(entry) if entry.is_dir() else File(entry.read_bytes(), True)
                   for entry in path.iterdir()}, True)


class Disk:
    """The folder `root`, and the calls that change it while it is `watched`."""

    def __init__(self, root: pathlib.Path):
        self.root, self._start = root, read(root)
        self.calls: list[tuple] = []
        """(call, path below root, and what else it was given)"""

    @contextlib.contextmanager
    def watched(self):
        """Inside the block the calls are noted, and done."""
        before = {name: getattr(os, name) for name in CALLS}
        opened = builtins.open

        def noted_open(file, mode="r", *args, **kwargs):
            opened_file = opened(file, mode, *args, **kwargs)
            if "w" in mode:
                self.calls.append(("create", self._below(file)))
            return opened_file

        def noted(name, real):
            def call(*args, dir_fd=None, **kwargs):
                described = self._described(name, args, dir_fd)
                result = real(*args, **({} if dir_fd is None else {"dir_fd": dir_fd}), **kwargs)
                self.calls.append(described)  # a call that failed has changed nothing
                return result
            return call

        builtins.open = noted_open
        for name, real in before.items():
            setattr(os, name, noted(name, real))
        try:
            yield self
        finally:
            builtins.open = opened
            for name, real in before.items():
                setattr(os, name, real)

    def _described(self, name: str, args: tuple, dir_fd: int | None) -> tuple:
        if name in ("write", "fsync"):
            path = pathlib.Path(os.readlink(f"/proc/self/fd/{args[0]}"))
        else:
            path = pathlib.Path(args[0] if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{args[0]}")
        more = bytes(args[1]) if name == "write" else self._below(args[1]) if name == "rename" else None
        return name, self._below(path), more

    def _below(self, path) -> tuple[str, ...]:
        return pathlib.Path(path).relative_to(self.root).parts

    def states_after_power_loss(self, image: pathlib.Path):
        """(calls done, `image` holding what may be on the disk then), for every number of calls and every choice of the
        folders whose last changes reached the disk without an fsync."""
        seen = copy.deepcopy(self._start)
        for number in range(len(self.calls) + 1):
            if number:
                _apply(seen, *self.calls[number - 1])
            open_folders = [path for path, folder in _folders(seen) if not folder.is_synced()]
            for lucky in itertools.product([False, True], repeat=len(open_folders)):
                shutil.rmtree(image, ignore_errors=True)
                _write(seen, image, {path for path, is_lucky in zip(open_folders, lucky) if is_lucky}, ())
                yield number, image


def _apply(root: Folder, name: str, path: tuple[str, ...], more=None) -> None:
    parent, place = _at(root, path[:-1]), path[-1] if path else None
    if name == "create":
        parent[place] = File()
    elif name == "mkdir":
        parent[place] = Folder()
    elif name == "write":
        parent[place].content += more
    elif name == "fsync":
        entry = _at(root, path)
        entry.durable = dict(entry) if isinstance(entry, Folder) else entry.content
    elif name == "rename":
        _at(root, more[:-1])[more[-1]] = parent.pop(place)
    else:
        del parent[place]


def _at(root: Folder, path: tuple[str, ...]):
    for name in path:
        root = root[name]
    return root


def _folders(folder: Folder, path: tuple[str, ...] = ()):
    """(path, folder) of all folders that may be on the disk, under the names that processes or the disk know."""
    yield path, folder
    for name, entry in {**folder.durable, **folder}.items():
        if isinstance(entry, Folder):
            yield from _folders(entry, (*path, name))


def _write(folder: Folder, target: pathlib.Path, lucky: set, path: tuple[str, ...]) -> None:
    target.mkdir()
    for name, entry in (folder if path in lucky else folder.durable).items():
        if isinstance(entry, Folder):
            _write(entry, target / name, lucky, (*path, name))
        else:
            (target / name).write_bytes(entry.durable)
