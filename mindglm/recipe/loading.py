"""Recipe file + overrides -> a frozen `Recipe`, or one UserError that lists every mistake; and back to YAML."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from mindglm.errors import UserError
from mindglm.recipe import rules
from mindglm.recipe.reader import Reader
from mindglm.recipe.schema import Recipe, model_type
from mindglm.recipe.source import BASE, COMMAND_LINE, Place, Problem, graft, include, parse, read, scalar


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A recipe, and where what was given stands."""

    recipe: Recipe
    given: Mapping[str, Place]
    """Dotted key -> place of its value; a key that is not in it has its default."""


def load(path: str | Path, overrides: Sequence[str] = (), to_plan: bool = False) -> Recipe:
    """Reads and checks a recipe file.

    `overrides` are `dotted.key=value` texts, the value read as YAML; later ones win.
    to_plan: the recipe is only planned, so that what the planner takes and the trainer does not is no mistake.
    Raises UserError that lists all mistakes, one a line, as `file:line:column: key: given, expected, what to do`; in
    overrides as `command line:number:column: ...`.
    """
    return _resolve(read(path), str(path), overrides, to_plan).recipe


def loads(text: str, name: str = "<recipe>", overrides: Sequence[str] = ()) -> Recipe:
    """As `load`, from the text itself; `name` stands for the file in messages."""
    return _resolve(text, name, overrides).recipe


def resolve(path: str | Path, overrides: Sequence[str] = ()) -> Resolved:
    """As `load`, with the places of what was given."""
    return _resolve(read(path), str(path), overrides)


def _resolve(text: str, name: str, overrides: Sequence[str], to_plan: bool = False) -> Resolved:
    problems: list[Problem] = []
    tree = include(parse(text, name, problems), name, problems)
    for number, override in enumerate(overrides, 1):
        graft(tree, override, number, problems)
    reader = Reader(problems, partial=any(problem.key == BASE for problem in problems))
    recipe = reader.read_recipe(tree)
    for path, message in rules.violations(reader.parts, to_plan):
        problems.append(Problem(reader.place(path), path, message))
    if problems:
        raise UserError(_report(name, problems))
    assert isinstance(recipe, Recipe)
    return Resolved(recipe, reader.given)


def _report(name: str, problems: list[Problem]) -> str:
    """All problems in the order of the file, then of its base, then of the command line."""
    def order(problem: Problem) -> tuple[bool, bool, Place]:
        where = problem.where
        return where.file == COMMAND_LINE, where.file != name, where

    lines = list(dict.fromkeys(str(p) for p in sorted(problems, key=order)))
    if len(lines) == 1:
        return lines[0]
    return f"{name} has {len(lines)} mistakes\n" + "\n".join(f"  {line}" for line in lines)


class _Dumper(yaml.SafeDumper):
    """Quotes what this suite would not read back as text, such as 1e-6."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; `loads` of it gives an equal recipe."""
    return yaml.dump(plain(recipe), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110,
                     allow_unicode=True)


def value_to_yaml(value: object) -> str:
    """One value on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def plain(recipe: Recipe) -> dict:
    """The recipe as dicts, lists and scalars, under the keys of its file."""
    data = _plain(recipe)
    config = data["model"]["model_config"]
    data["model"]["model_config"] = {"type": model_type(recipe.model.model_config), **config}
    return data


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
