"""`mindglm train` as a process: a second run on its folder, SIGTERM and SIGINT, resume, audit."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mindglm import recipe
from mindglm.checkpoint import store
from mindglm.cli.main import main
from tests.parallel.job import ROOT
from tests.train import test_run

STEPS = 400


@pytest.fixture
def recipe_file(tmp_path):
    """A recipe of the nano glyph encoder's kind, slow enough to be met in the middle."""
    settings = test_run.loaded(tmp_path / "run", overrides=[
        f"runner_config.stop_step={STEPS}", "validation.eval_step_interval=0", "monitor_config.sample_step_interval=0",
        "checkpoint.save_checkpoint_steps=1000", "monitor_config.weights_hash_interval=1"])
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(settings))
    return path


def start(path, *overrides):
    # A shell in the background lets its children ignore SIGINT; a run does not: it sets its own handler.
    return subprocess.Popen([sys.executable, "-m", "mindglm", "train", str(path), *overrides], stderr=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, text=True)


def wait_for_lines(path, count, process):
    end = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < end and process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["context.mode=1", "context.mode=0"])
def test_signals_and_a_second_run(tmp_path, recipe_file, capsys, mode):
    """SIGTERM 143, SIGINT 130, then to the end: the ledger of a run that nothing happened to, byte for byte.

    In compiled graphs (mode 0) MindSpore takes SIGINT for itself: mindglm/interrupts.py.
    """
    ledger = tmp_path / "run" / "ledger.jsonl"
    steps = []
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(recipe_file, mode)
        wait_for_lines(ledger, (steps[-1] if steps else 0) + 20, process)
        second = start(recipe_file, mode)
        told = second.communicate(timeout=120)[1]
        assert second.returncode == 2 and f"process {process.pid} on {os.uname().nodename}" in told, told
        process.send_signal(number)
        told = process.communicate(timeout=120)[1]
        assert process.returncode == code, told
        assert "the checkpoint is written" in told
        steps.append(store.load(tmp_path / "run" / "checkpoint").step)
    assert 0 < steps[0] < steps[1] < STEPS
    for overrides in ([], [f"output_dir={tmp_path / 'straight'}"]):
        process = start(recipe_file, mode, *overrides)
        told = process.communicate(timeout=240)[1]
        assert process.returncode == 0, told
    assert main(["audit", str(tmp_path / "run"), str(tmp_path / "straight"), "--tolerance", "0"]) == 0
    assert ledger.read_bytes() == (tmp_path / "straight" / "ledger.jsonl").read_bytes()
    assert (tmp_path / "run" / "run.lock").read_text() == ""


@pytest.mark.slow
def test_a_short_soak(tmp_path):
    """tests/benchmarks/soak.py with saves, validation and pictures; half an hour of it by hand."""
    command = [sys.executable, "-m", "tests.benchmarks.soak", "--steps", "1500", "--async"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "growth" in result.stdout
