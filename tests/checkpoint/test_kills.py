"""Promise 4: a save that is killed, or loses the power, at any instant leaves the old checkpoint or the new one."""

import collections
import json
import os
import subprocess
import sys

import pytest

from mindglm.checkpoint import store
from tests.checkpoint import example, power
from tests.parallel.job import ROOT


@pytest.mark.parametrize("how", ["before", "within"])
def test_a_process_killed_at_every_call_to_the_disk(tmp_path, how):
    """SIGKILL at each write, fsync, rename, mkdir, unlink and rmdir, and within each write, of a save by two ranks that
    also retires the oldest checkpoint: what is found is of step 2 or 3, whole, never a mixture; the next save works
    and leaves nothing behind."""
    done = subprocess.run([sys.executable, "-m", "tests.checkpoint.killed_saves", str(tmp_path), how], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    *kills, last = [json.loads(line) for line in done.stdout.splitlines()]
    calls = collections.Counter(kill["call"] for kill in kills)
    assert calls["write"] > 20, calls
    if how == "before":
        assert calls["fsync"] > 10 and calls["rename"] == 3 and calls["unlink"] > 5 and calls["rmdir"] == 1, calls
    for number, kill in enumerate([*kills, last]):
        assert kill["whole"] and kill["again"] and kill["left"] == [], (number, kill)
    newest = [kill["newest"] for kill in kills]
    assert newest == sorted(newest) and set(newest) == {2, 3}  # the new one appears at one instant and stays
    assert last == {**last, "killed": False, "newest": 3}


def test_the_power_fails_at_every_call_to_the_disk(tmp_path):
    """What was not fsynced is lost: the content of files, and what was made, renamed or removed in any of the folders.
    Every state the disk may then be in holds step 2 or step 3, whole; once the save has returned, step 3."""
    root = tmp_path / "run"
    for step in (1, 2):
        example.save_sharded(root, step, 2)
    disk = power.Disk(root)
    with disk.watched():
        example.save_sharded(root, 3, 2)
    assert len(disk.calls) > 50
    seen = set()
    for number, image in disk.states_after_power_loss(tmp_path / "image"):
        newest = store.load(image)
        assert newest.step in (2, 3) and example.is_of_step(newest, newest.step), (number, disk.calls[:number])
        if number == len(disk.calls):
            assert newest.step == 3
        seen.add((number, newest.step))
    assert {step for _, step in seen} == {2, 3}
    assert example.is_of_step(store.load(root), 3)


def test_the_power_loss_is_a_real_one(tmp_path, monkeypatch):
    """A save without fsync would be caught: some state of the disk holds no whole checkpoint any more."""
    root = tmp_path / "run"
    example.save_sharded(root, 2, 1)
    monkeypatch.setattr("mindglm.checkpoint.tensors.sync", lambda file: None)
    disk = power.Disk(root)
    with disk.watched():
        example.save_sharded(root, 3, 1)
    torn = 0
    for _, image in disk.states_after_power_loss(tmp_path / "image"):
        try:
            store.load(image)
        except store.UserError:
            torn += 1
    assert torn > 0
    assert os.path.exists(root / "iteration_00000003")
