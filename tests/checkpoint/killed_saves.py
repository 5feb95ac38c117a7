"""Saves, each in a process of its own that is killed at one chosen call to the disk; run by test_kills.py.

    python -m tests.checkpoint.killed_saves FOLDER before|within

before: ahead of each call, which is also after the one before it. within: when a write has done half of its bytes.
Prints a json line for each kill: the call, and what was found afterwards. The last line is of the save that nothing
killed. This module knows neither pytest nor MindSpore: a process with threads must not fork.
"""

import itertools
import json
import os
import pathlib
import shutil
import signal
import sys

from mindglm.checkpoint import store
from tests.checkpoint import example

CALLS = ("write", "fsync", "rename", "mkdir", "unlink", "rmdir")
"""Of the module os: everything by which a save changes the disk (mindglm/checkpoint/disk.py)."""


def watch(on_call) -> None:
    """From now on on_call(name, real function, arguments, keywords) stands for each of CALLS."""
    for name in CALLS:
        real = getattr(os, name)

        def stand_in(*args, name=name, real=real, **kwargs):
            return on_call(name, real, args, kwargs)

        setattr(os, name, stand_in)


def kill_at(moment: int, how: str, said: int) -> None:
    """Kill this process at its call number `moment` (within: at that write), told through the pipe `said`."""
    count = itertools.count()
    write = os.write

    def on_call(name, real, args, kwargs):
        if (how == "within" and name != "write") or next(count) != moment:
            return real(*args, **kwargs)
        write(said, name.encode())
        if how == "within":
            real(args[0], args[1][:len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    watch(on_call)


def save(root: pathlib.Path, step: int) -> None:
    """As two ranks, the second checkpoint from now on the oldest that is kept."""
    example.save_sharded(root, step, 2)


def one(root: pathlib.Path, moment: int, how: str) -> dict:
    """A save of step 3 over checkpoints of steps 1 and 2, killed; and what a run finds that starts again."""
    hear, say = os.pipe()
    child = os.fork()
    if not child:
        kill_at(moment, how, say)
        save(root, 3)
        os._exit(0)
    os.close(say)
    _, status = os.waitpid(child, 0)
    call = os.read(hear, 16).decode()
    os.close(hear)
    there = store.steps(root)
    whole = all(example.is_of_step(store.load(root, step), step) for step in there)
    newest = store.load(root).step
    save(root, 4)
    again = example.is_of_step(store.load(root), 4) and len(store.steps(root)) == 2
    left = [path.name for path in root.iterdir() if path.name.startswith(".iteration_") or "damaged" in path.name]
    return {"call": call, "killed": os.WIFSIGNALED(status), "newest": newest, "whole": whole, "again": again,
            "left": left}


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    save(folder / "before", 1)
    save(folder / "before", 2)
    for number in itertools.count():
        shutil.copytree(folder / "before", folder / "run")
        found = one(folder / "run", number, sys.argv[2])
        shutil.rmtree(folder / "run")
        print(json.dumps(found))
        if not found["killed"]:
            break
