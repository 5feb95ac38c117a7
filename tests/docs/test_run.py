"""The `bash` blocks of the documentation are run, page by page, in a folder that looks like the checkout.

`GLM-Image` there is a tiny folder in the released layout. What trains, and what looks at what was trained, is slow.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mindglm.cli.main import main
from tests.docs.commands import ROOT, commands

SHARED = ("recipes", "launch", "mindglm", "ckpt_tools", "tests", "docs")
ANSWER_NO = {"diff --tolerance 0": 1}  # two folders of which one is in another number format


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in SHARED:
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "tests/golden/base/repo", tmp_path / "GLM-Image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trains(command: str) -> bool:
    """Whether MindSpore runs, or what a training left is needed."""
    return " train " in command or "output/" in command or ("launch/" in command and "--dry-run" not in command)


def run(command: str) -> tuple[int, str]:
    """(exit code, output): by bash, as a reader would, from an environment whose programs are on PATH."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GLOG_v": "3",
                   "PYTHONPATH": str(ROOT), "MINDGLM_VENV": str(Path(sys.executable).parents[1])}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=600)
    return result.returncode, result.stdout + result.stderr


def expected(command: str) -> int:
    return next((code for part, code in ANSWER_NO.items() if part in command), 0)


@pytest.mark.parametrize("page", ["quickstart.md", "cluster.md", "conversion.md", "troubleshooting.md"])
def test_commands_of_a_page(page, checkout, capsys):
    """All that need neither a device nor a training."""
    light = [command for kind, command in commands(page) if kind == "bash" and not trains(command)]
    assert light
    for command in light:
        words = shlex.split(command)
        # In this process where it can be: starting Python would be most of the time.
        code, told = (main(words[1:]), capsys.readouterr()) if words[0] == "mindglm" else run(command)
        assert code == expected(command), f"{command}\n{told}"


@pytest.mark.slow
def test_trainings_of_the_quickstart(checkout):
    """One process, what it left, two processes, and that both are the same run."""
    heavy = [command for kind, command in commands("quickstart.md") if kind == "bash" and trains(command)]
    assert sum(" train " in command or "train_node" in command for command in heavy) == 2 and len(heavy) == 6
    for command in heavy:
        code, told = run(command)
        assert code == 0, f"{command}\n{told}"
    assert (checkout / "output/first/model/text_encoder").is_dir()
    assert (checkout / "output/two/log/worker_1.log").is_file()
