"""What reaches the disk, and in which order: files written and fsynced, folders fsynced, renames.

Everything that changes the disk for a checkpoint is one of os.write, os.fsync, os.rename, os.mkdir, os.unlink and
os.rmdir, called here or by shutil.rmtree. So a test can stop a process before, within and after each of them
(tests/checkpoint/test_kills.py).
"""

import os
import pathlib
import stat

from mindglm.errors import UserError

SMALL_FILE = 64 << 20
"""Bytes of the largest json or YAML file that is read whole."""


def write_all(file, data) -> None:
    """All of `data` into an unbuffered file, which may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(file.fileno(), view):]


def sync(file) -> None:
    """Flush an open unbuffered file down to the disk."""
    os.fsync(file.fileno())


def sync_folder(path: str | os.PathLike) -> None:
    """Make the renames and creations inside a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: str | os.PathLike, data: bytes) -> None:
    """A file in a staging folder, fsynced."""
    with open(path, "wb", buffering=0) as file:
        write_all(file, data)
        sync(file)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a small file whole: another reader sees the old text or the new one, never a part."""
    path = pathlib.Path(path)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_new(staging, text.encode())
        os.rename(staging, path)
    except OSError:
        staging.unlink(missing_ok=True)
        raise


def open_regular(path: str | os.PathLike, follow_links: bool = False):
    """An existing file opened for reading, unbuffered.

    OSError when there is none; ValueError for anything but a file: a device, or a pipe that would block for ever, or
    (unless follow_links) a link, which may lead anywhere.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if not follow_links and os.path.islink(path):
        raise ValueError("is a link, expected a file")
    handle = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("is not an ordinary file")
    return open(handle, "rb", buffering=0)


def read_small(path: str | os.PathLike, limit: int = SMALL_FILE, follow_links: bool = False) -> bytes:
    """The content of a file of at most `limit` bytes. Raises as open_regular, and ValueError for a larger one."""
    with open_regular(path, follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"has {size} bytes, expected at most {limit}")
        content = bytearray()
        while piece := file.read(1 << 20):
            content.extend(piece)
            if len(content) > limit:
                raise ValueError(f"grew beyond {limit} bytes")
    return bytes(content)


def refuse_links_out(root: pathlib.Path, path: pathlib.Path) -> None:
    """UserError when `path`, somewhere below `root`, leads out of it by a link.

    A snapshot in a Hugging Face cache (models--x--y/snapshots/<revision>) consists of links to models--x--y/blobs:
    those are its own.
    """
    if not path.is_symlink():
        return
    home, place = root.resolve(), path.resolve()
    own = [home] + [parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"]
    if not any(folder in place.parents for folder in own):
        raise UserError(f"{path}: is a link to {place}, outside of {home}; put the file itself in its place")
