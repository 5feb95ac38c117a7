"""The floors of the house, as import-linter contracts in setup.cfg."""

import configparser
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import mindglm

ROOT = Path(__file__).resolve().parents[2]


def test_contracts_hold(capsys):
    assert Path(mindglm.__file__).is_relative_to(ROOT), "another mindglm than this checkout's is installed"
    status = lint_imports(config_filename=str(ROOT / "setup.cfg"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_every_planning_room_is_kept_free_of_mindspore():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    sources = config["importlinter:contract:planning"]["source_modules"].split()
    rooms = {path.name for path in (ROOT / "mindglm").iterdir() if path.is_dir()}
    for room in {"recipe", "plan", "order"} & rooms:
        assert f"mindglm.{room}" in sources
