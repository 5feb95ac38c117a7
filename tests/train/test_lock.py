"""Two runs on one output folder: the second is refused with the first one's pid and host."""

import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from mindglm.errors import UserError
from mindglm.train import lock

HOLDER = """import sys, time
from mindglm.train import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_run_is_refused_with_pid_and_host(tmp_path, holder):
    with pytest.raises(UserError) as refused:
        with lock.held(tmp_path):
            raise AssertionError("the folder was given away twice")
    text = str(refused.value)
    assert f"process {holder.pid} on {socket.gethostname()}" in text and str(tmp_path) in text


def test_killed_run_leaves_the_folder_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.held(tmp_path) as left_by:
        assert f"process {holder.pid}" in left_by
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_finished_run_leaves_no_trace_but_an_empty_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with lock.held(tmp_path):
            raise ZeroDivisionError
    assert (tmp_path / lock.NAME).read_text() == ""
    with lock.held(tmp_path / "made" / "by it") as left_by:
        assert left_by == ""
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_lock_of_another_host_counts_while_it_is_touched(tmp_path):
    """What a shared file system without locks between hosts would show: a file of another host, locked by nobody."""
    path = tmp_path / lock.NAME
    path.write_text(json.dumps({"host": "nodeX", "pid": 17, "started": "2026-01-01 00:00:00"}))
    with pytest.raises(UserError, match="process 17 on nodeX"):
        with lock.held(tmp_path):
            raise AssertionError
    old = time.time() - lock.STALE_SECONDS - 5
    os.utime(path, (old, old))
    with lock.held(tmp_path) as left_by:
        assert "process 17 on nodeX" in left_by


def test_held_lock_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.01)
    path = tmp_path / lock.NAME
    with lock.held(tmp_path):
        os.utime(path, (0, 0))
        end = time.monotonic() + 5
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        with lock.held(tmp_path / "file" / "run"):
            raise AssertionError


@pytest.mark.parametrize("call", ["write", "touch"])
def test_disk_that_takes_no_lock_is_a_user_error(tmp_path, monkeypatch, call):
    """Full when the lock is written, or broken while the age of another host's lock is asked: nothing is left."""
    if call == "touch":
        (tmp_path / lock.NAME).write_text(json.dumps({"host": "nodeX", "pid": 17, "started": "2026-01-01 00:00:00"}))

    touch = pathlib.Path.touch

    def refused(what, *args):
        if call == "touch":
            touch(what)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "write", refused) if call == "write" else (pathlib.Path, "touch", refused)))
        with pytest.raises(UserError, match="cannot be written .*No space left on device.*make room"):
            with lock.held(tmp_path):
                raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]


def test_lock_is_touched_again_after_a_failure(tmp_path, monkeypatch, capfd):
    """A shared disk that is away for a while: said once, and the lock does not grow old."""
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.01)
    touch, path, failures = os.utime, tmp_path / lock.NAME, []

    def away(*args):
        if len(failures) < 3:
            failures.append(args)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        touch(*args)

    with lock.held(tmp_path):
        touch(path, (0, 0))
        monkeypatch.setattr(os, "utime", away)
        end = time.monotonic() + 5
        while path.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert capfd.readouterr().out.count("cannot be touched") == 1


@pytest.mark.parametrize("content", ["5", "[]", '{"pid": 5}', "null"])
def test_a_lock_file_that_says_nothing_is_nobodys(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with lock.held(tmp_path) as left_by:
        assert left_by == ""
