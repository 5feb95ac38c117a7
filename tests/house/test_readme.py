"""README says what is there: its commands parse, its recipes are valid, the files and tests that it names exist."""

import pathlib
import re
import shlex

import pytest

from mindglm import recipe
from mindglm.cli.main import build_parser

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line.split("  #")[0].split(" > ")[0].strip() for block in BLOCKS for line in block.splitlines()
            if re.match(r"(mindglm|bash) ", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one_that_runs(command):
    words = shlex.split(command)
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    args = build_parser().parse_args(words[1:])
    named = getattr(args, "recipe", None) or getattr(args, "file", None)
    if named is not None:
        recipe.load(ROOT / named, getattr(args, "overrides", None) or ())


def test_there_are_commands_of_every_kind():
    for start in ("bash launch/quickstart.sh", "bash launch/test.sh", "mindglm prepare", "mindglm train",
                  "mindglm generate", "mindglm recipe show", "mindglm recipe check", "bash launch/train_node.sh"):
        assert any(command.startswith(start) for command in COMMANDS), start


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|launch|recipes|mindglm)/[\w/.]+)`", TEXT))))
def test_named_place_exists(path):
    assert (ROOT / path).exists()


def test_the_picture_is_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)
