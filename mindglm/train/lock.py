"""One run at a time writes to an output folder.

`<output_dir>/run.lock` says who does: its host, process id and start. While the run lives it holds a lock of the
operating system on that file, which ends with the process however that ends. Some shared file systems do not carry
such locks from host to host; so a live run also touches the file every few seconds, and a run on another host takes
over only a lock that nobody has touched for two minutes.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time

from mindglm.checkpoint.disk import write_all
from mindglm.errors import UserError
from mindglm.train import writable

NAME = "run.lock"
TOUCH_SECONDS, STALE_SECONDS = 10.0, 120.0


@contextlib.contextmanager
def held(output_dir: str | os.PathLike):
    """Context in which this process alone writes to `output_dir`, which is made if need be.

    UserError with the other run's process id and host when there is one, or when the folder cannot be written. The
    context's value is a sentence on a lock that a dead run left behind, or "".
    """
    path = pathlib.Path(output_dir) / NAME
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+b", buffering=0))  # a buffer would be written once more by close
            left_by = _take(file, path)
        except OSError as error:
            raise writable.refusal(output_dir, error) from error
        released = threading.Event()
        toucher = threading.Thread(target=_touch, args=(path, released), daemon=True, name="run.lock")
        toucher.start()
        try:
            yield left_by
        finally:
            released.set()
            toucher.join()
            try:
                file.truncate(0)  # an empty file: nobody runs
            except OSError as error:  # it must not hide how the run ended
                print(f"mindglm: {path} cannot be emptied ({error})", flush=True)


def _take(file, path: pathlib.Path) -> str:
    here = socket.gethostname()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(_refusal(path, _owner(file))) from None
    owner = _owner(file)
    if owner.get("host", here) != here and _age(file, path) < STALE_SECONDS:
        raise UserError(_refusal(path, owner))
    file.truncate(0)
    about = {"host": here, "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_all(file, json.dumps(about).encode() + b"\n")
    return f"the run before (process {owner['pid']} on {owner['host']}) ended without a word" if owner else ""


def _owner(file) -> dict:
    """{host, pid, started} of who wrote the file; {} when it is empty or cut off."""
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"host", "pid", "started"} <= found.keys() else {}


def _age(file, path: pathlib.Path) -> float:
    """Seconds since the lock was touched, by the clock of the file system: hosts need not agree on the time."""
    probe = path.with_name(f".{NAME}.{os.getpid()}.tmp")
    try:
        probe.touch()
        return probe.stat().st_mtime - os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _refusal(path: pathlib.Path, owner: dict) -> str:
    who = (f"process {owner['pid']} on {owner['host']}, started {owner['started']}" if owner else
           "another process that has just begun")
    return (f"{path.parent} is in use by another run: {who}. Two runs would mix their checkpoints: wait for it, stop "
            "it (kill -TERM lets it save), or give another output_dir")


def _touch(path: pathlib.Path, released: threading.Event) -> None:
    said = False
    while not released.wait(TOUCH_SECONDS):
        try:
            os.utime(path)
        except OSError as error:  # often it passes; where it does not, saving will say more
            if not said:
                print(f"mindglm: {path} cannot be touched ({error}); tried again every {TOUCH_SECONDS:g} s", flush=True)
            said = True
