"""The command line: what it imports, what it answers, how it exits."""

import subprocess
import sys
from pathlib import Path

import pytest

from mindglm.cli import main as cli
from mindglm.errors import UserError
from tests.recipe.helpers import recipe_text

ROOT = Path(__file__).resolve().parents[2]
HEAVY = "{'mindspore', 'mindformers', 'numpy', 'PIL'}"


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text())
    return str(path)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["generate", "--help"], ["prepare", "--help"], ["recipe", "show", "FILE"]],
)
def test_light_commands_import_nothing_heavy(arguments, recipe_file):
    """In a process of its own, looking at sys.modules when the command is done."""
    arguments = [recipe_file if word == "FILE" else word for word in arguments]
    code = (
        "import sys\nfrom mindglm.cli.main import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)\nsys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) > 5


def test_python_dash_m_gives_the_exit_code(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mindglm", "recipe", "check", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert (
        result.stderr.count("\n") == 1 and result.stderr.startswith("mindglm: ") and "no such recipe" in result.stderr
    )


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    for name in ("prepare", "train", "generate", "recipe", "evaluate", "plan", "doctor", "triage", "audit"):
        assert f"\n    {name} " in told
    assert told.count("not yet: ") == len(cli.NOT_YET)


@pytest.mark.parametrize("command", list(cli.NOT_YET))
def test_commands_to_come_say_so(command, capsys):
    assert cli.main([command, "anything", "--model", "x"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"`mindglm {command}` does not exist yet" in told


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train"], ["train", "r.yaml", "--stop", "3"], ["recipe"], ["generate"]]
)
def test_bad_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: mindglm" in capsys.readouterr().err


def test_recipe_check_and_show(recipe_file, capsys):
    assert cli.main(["recipe", "check", recipe_file, "runner_config.stop_step=7"]) == 0
    assert "valid" in capsys.readouterr().out
    assert cli.main(["recipe", "show", recipe_file, "runner_config.stop_step=7"]) == 0
    assert "stop_step: 7" in capsys.readouterr().out
    assert cli.main(["recipe", "check", recipe_file, "runner_config.stop_stp=7"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "nearest name: stop_step" in told.err


@pytest.mark.parametrize(
    "raised, status, told",
    [(UserError("no such thing"), 2, "mindglm: no such thing\n"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_exit_codes(raised, status, told, recipe_file, monkeypatch, capsys):
    def fail(*args):
        raise raised

    monkeypatch.setattr("mindglm.recipe.load", fail)
    assert cli.main(["recipe", "check", recipe_file]) == status
    assert told in capsys.readouterr().err


def test_a_fault_keeps_its_traceback(recipe_file, monkeypatch):
    """Python prints it and exits with 1."""

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr("mindglm.recipe.load", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["recipe", "check", recipe_file])
