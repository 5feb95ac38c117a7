"""A disk that is full, read-only or broken: the save says so, and the last good checkpoint stays."""

import errno
import os

import pytest

from mindglm.checkpoint import store
from tests.checkpoint import example
from tests.checkpoint.killed_saves import CALLS


def break_disk(patch, number: int, code: int, calls, for_ever: bool) -> list[str]:
    """From its call number `number` on (or at that one alone), each of `calls` fails; returns the list of calls."""
    seen = []
    for name in CALLS:
        real = getattr(os, name)

        def call(*args, name=name, real=real, **kwargs):
            seen.append(name)
            is_its_turn = len(seen) > number if for_ever else len(seen) == number + 1
            if name in calls and is_its_turn:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        patch.setattr(os, name, call)
    return seen


@pytest.mark.parametrize("code, calls, for_ever", [
    (errno.ENOSPC, ("write", "mkdir", "fsync"), True), (errno.EROFS, CALLS, True), (errno.EIO, CALLS, False),
    (errno.EDQUOT, ("write",), False)], ids=["full", "read-only", "broken once", "quota"])
def test_every_call_refused_in_turn(tmp_path, monkeypatch, code, calls, for_ever):
    """OSError with the disk's own words; the old checkpoint, or the new one once it is complete; no half staging folder
    keeps a full disk full; the next save works."""
    example.save(tmp_path, 1)
    example.save(tmp_path, 2)
    for number in range(1000):
        with monkeypatch.context() as patch:
            seen = break_disk(patch, number, code, calls, for_ever)
            failed = None
            try:
                example.save(tmp_path, 3)
            except OSError as error:
                failed = error
        if len(seen) <= number:
            break
        there = store.steps(tmp_path)
        assert there in ([1, 2], [1, 2, 3], [2, 3]), number
        assert all(example.is_of_step(store.load(tmp_path, step), step) for step in there)
        if failed is None:
            assert seen[number] not in calls or 3 in there, (number, seen[number])
        else:
            assert failed.errno == code
        if code == errno.ENOSPC and there == [1, 2]:
            assert not list(tmp_path.glob(".iteration_*")), "a disk that is full must not be kept full"
        for step in store.steps(tmp_path):
            if step > 2 or 1 not in store.steps(tmp_path):
                store.abandon(tmp_path / f"iteration_{step:08d}")
        for step in (1, 2):
            if step not in store.steps(tmp_path):
                example.save(tmp_path, step)
    assert number > 40 and example.is_of_step(store.load(tmp_path), 3)


def test_a_folder_that_is_no_folder(tmp_path):
    (tmp_path / "checkpoint").write_text("a file")
    with pytest.raises(OSError):
        example.save(tmp_path / "checkpoint", 1)
    assert (tmp_path / "checkpoint").read_text() == "a file"
