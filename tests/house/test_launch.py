"""The launch scripts: they parse, and the shared environment is made once and remade only when it must be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.fixture
def checkout(tmp_path):
    """A folder with launch/venv.sh and a stand-in `python` in the environment that notes what it is asked to do."""
    root = tmp_path / "checkout"
    (root / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "venv.sh", root / "launch")
    (root / "setup.cfg").write_text("[metadata]\nname = x\n")
    (root / "pyproject.toml").write_text("")
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncase "$1" in -c) exit 0;; esac\necho "$@" >> {root}/calls\n')
    python.chmod(0o755)
    return root


def source(checkout, extras="test"):
    env = {**os.environ, "MINDGLM_EXTRAS": extras}
    env.pop("MINDGLM_VENV", None)
    told = 'echo "ROOT=$ROOT PYTHON=$PYTHON PWD=$PWD"; echo "$PATH"'
    command = f"set -euo pipefail; source {checkout}/launch/venv.sh; {told}"
    result = subprocess.run(["bash", "-c", command], cwd="/", env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def calls(checkout):
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_environment_is_installed_once(checkout):
    first = source(checkout)
    assert f"ROOT={checkout} PYTHON={checkout}/.venv/bin/python PWD={checkout}" in first
    assert first.splitlines()[-1].startswith(f"{checkout}/.venv/bin:")
    assert len(calls(checkout)) == 1 and f"--editable {checkout}[test]" in calls(checkout)[0]
    assert "up to date" in source(checkout)
    assert len(calls(checkout)) == 1


def test_environment_follows_setup_cfg_and_extras(checkout):
    source(checkout)
    with (checkout / "setup.cfg").open("a") as file:
        file.write("version = 2\n")
    source(checkout)
    assert len(calls(checkout)) == 2
    source(checkout, extras="test,quickstart")
    assert len(calls(checkout)) == 3


def test_failed_installation_is_said_and_tried_again(checkout):
    python = checkout / ".venv" / "bin" / "python"
    good = python.read_text()
    python.write_text(good + "exit 1\n")
    result = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source {checkout}/launch/venv.sh"], capture_output=True, text=True
    )
    assert result.returncode == 1 and "installation failed" in result.stderr
    python.write_text(good)
    source(checkout)
    assert len(calls(checkout)) == 2


def test_half_made_environment_is_made_anew(checkout):
    """Ctrl-C while `python -m venv` runs leaves a Python without pip."""
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\ncase "$2" in "import pip") exit 1;; esac\nexit 0\n')
    script = checkout / "launch" / "venv.sh"
    script.write_text(script.read_text().replace(" -m pip install ", " -m pip --version && : "))
    assert "making" in source(checkout)
    assert (checkout / ".venv" / "pyvenv.cfg").exists()


def test_without_python_the_message_says_what_to_install(checkout, tmp_path):
    """Every candidate is replaced by one that does not fit."""
    script = checkout / "launch" / "venv.sh"
    script.write_text(script.read_text().replace("/usr/bin/python3.1", "/nowhere/python3.1"))
    (checkout / ".venv" / "bin" / "python").unlink()
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "dirname", "rm"):
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    result = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source {script}"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "expected Python 3.10 or 3.11" in result.stderr and "python3.11-venv" in result.stderr


def test_this_python_is_one_the_scripts_would_take():
    assert sys.version_info[:2] in ((3, 10), (3, 11))
