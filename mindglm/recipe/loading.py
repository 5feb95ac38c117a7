"""Recipe file + overrides -> a frozen `Recipe`, or one UserError that lists every mistake; and back to YAML."""

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path

import yaml

from mindglm.errors import UserError
from mindglm.recipe import rules
from mindglm.recipe.schema import MODEL_TYPES, OBJECTIVE_TYPES, Recipe, model_type
from mindglm.recipe.source import COMMAND_LINE, Item, Problem, graft, parse

_FLOAT_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class _Invalid:
    """Stands for a value that has been complained about."""


_INVALID = _Invalid()


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe file.

    `overrides` are `dotted.key=value` texts, the value read as YAML; later ones win.
    Raises UserError that lists all mistakes, one a line, as `file:line: key: given, expected, what to do`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe file; recipes of this suite stand in recipes/") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a recipe file (.yaml) in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    return loads(text, str(path), overrides)


def loads(text: str, name: str = "<recipe>", overrides: Sequence[str] = ()) -> Recipe:
    """As `load`, from the text itself; `name` stands for the file in messages."""
    problems: list[Problem] = []
    tree = parse(text, name, problems)
    for override in overrides:
        graft(tree, override, problems)
    reader = _Reader(problems)
    recipe = reader.read_recipe(tree)
    for path, message in rules.violations(reader.parts):
        problems.append(Problem(reader.place(path), path, message))
    if problems:
        raise UserError(_report(name, problems))
    assert isinstance(recipe, Recipe)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; `loads` of it gives an equal recipe."""
    data = _plain(recipe)
    config = data["model"]["model_config"]
    data["model"]["model_config"] = {"type": model_type(recipe.model.model_config), **config}
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _report(name: str, problems: list[Problem]) -> str:
    def order(problem: Problem) -> tuple[bool, int]:
        line = problem.where.rpartition(":")[2]
        return problem.where == COMMAND_LINE, int(line) if line.isdigit() else 0

    lines = [str(p) for p in sorted(problems, key=order)]
    if len(lines) == 1:
        return lines[0]
    return f"{name} has {len(lines)} mistakes\n" + "\n".join(f"  {line}" for line in lines)


@functools.cache
def _hints(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls)


class _Reader:
    """Walks the tree along the dataclasses; collects problems, finished parts and the places of keys."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        self.parts: dict[str, rules.Part] = {}
        """Dotted path -> what could be read of each section, for the rules."""
        self._places: dict[str, str] = {}

    def place(self, path: str) -> str:
        """Where a key stands; for one that takes its default, where its section stands."""
        while path not in self._places:
            path = path.rpartition(".")[0]
        return self._places[path]

    def read_recipe(self, tree: Item) -> object:
        self._places[""] = tree.where
        return self._section(tree, Recipe, "")

    def _complain(self, item: Item, path: str, message: str) -> _Invalid:
        self.problems.append(Problem(item.where, path, message))
        return _INVALID

    def _section(self, item: Item, cls: type, path: str) -> object:
        """One mapping -> one dataclass."""
        if item.value is None:
            item = Item({}, item.where)
        if not isinstance(item.value, dict):
            return self._complain(item, path, f"given {_shown(item)}, expected a section of keys such as {_names(cls)}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if cls is Recipe:
            item = Item(_with_objective(item), item.where)
        values = {}
        for key, child in item.value.items():
            below = f"{path}.{key}" if path else key
            self._places[below] = child.where
            if key == "type" and key not in fields and path == "model.model_config":
                continue
            if key not in fields:
                self._complain(child, below, _unknown(key, list(fields)))
                continue
            values[key] = self._field(child, cls, key, below, item)
        for name, field in fields.items():
            if name not in item.value:
                below = f"{path}.{name}" if path else name
                values[name] = self._default(item, cls, field, below)
        right = {name: value for name, value in values.items() if value is not _INVALID}
        self.parts[path] = rules.Part(cls, right)
        return cls(**values) if len(right) == len(fields) else _INVALID

    def _default(self, item: Item, cls: type, field: dataclasses.Field, path: str) -> object:
        hint = _hints(cls)[field.name]
        if dataclasses.is_dataclass(hint):  # an absent section is an empty one: its own missing keys are named
            return self._section(Item({}, item.where), hint, path)
        if field.default is not dataclasses.MISSING:
            return field.default
        return self._complain(item, path, f"missing; expected {_expected(hint, field.name)}")

    def _field(self, item: Item, cls: type, key: str, path: str, section: Item) -> object:
        if path == "model.model_config":
            return self._model_config(item, path)
        if path == "objective":
            return self._objective(item, path, section)
        return self._value(item, _hints(cls)[key], path)

    def _model_config(self, item: Item, path: str) -> object:
        kind = item.value.get("type") if isinstance(item.value, dict) else None
        if kind is None:
            return self._complain(item, f"{path}.type", f"missing; expected one of {', '.join(MODEL_TYPES)}")
        if not isinstance(kind.value, str) or kind.value not in MODEL_TYPES:
            return self._complain(kind, f"{path}.type", _not_one_of(kind, list(MODEL_TYPES)))
        return self._section(item, MODEL_TYPES[kind.value], path)

    def _objective(self, item: Item, path: str, section: Item) -> object:
        trainer = section.value.get("trainer")
        kind = trainer.value.get("type") if trainer and isinstance(trainer.value, dict) else None
        if kind is None or not isinstance(kind.value, str) or kind.value not in OBJECTIVE_TYPES:
            return _INVALID  # trainer.type has been or will be complained about; its options are unknown until then
        return self._section(item, OBJECTIVE_TYPES[kind.value], path)

    def _value(self, item: Item, hint: object, path: str) -> object:
        if dataclasses.is_dataclass(hint):
            return self._section(item, hint, path)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            assert len(args) == 2 and args[1] is type(None), f"{path}: only `X | None` is read"
            return None if item.value is None else self._value(item, args[0], path)
        if origin is typing.Literal:
            if any(item.value == a and type(item.value) is type(a) for a in args):
                return item.value
            return self._complain(item, path, _not_one_of(item, list(args)))
        if origin is tuple:
            return self._tuple(item, hint, args, path)
        value = _scalar(item.value, hint)
        if value is _INVALID:
            advice = (
                "; put it in quotes" if hint is str and not isinstance(item.value, (dict, list, type(None))) else ""
            )
            return self._complain(item, path, f"given {_shown(item)}, expected {_expected(hint)}{advice}")
        return value

    def _tuple(self, item: Item, hint: object, args: tuple, path: str) -> object:
        variable = args[-1] is Ellipsis
        if not isinstance(item.value, list) or not variable and len(item.value) != len(args):
            return self._complain(item, path, f"given {_shown(item)}, expected {_expected(hint)}")
        values = tuple(self._value(child, args[0], f"{path}[{i}]") for i, child in enumerate(item.value))
        return _INVALID if _INVALID in values else values


def _with_objective(item: Item) -> dict[str, Item]:
    """The objective's options all have defaults, so the section may be left out."""
    return item.value if "objective" in item.value else {**item.value, "objective": Item({}, item.where)}


def _scalar(value: object, kind: type) -> object:
    if kind is bool or kind is str or isinstance(value, bool):
        return value if type(value) is kind else _INVALID
    if kind is int:
        return value if type(value) is int else _INVALID
    assert kind is float, f"a recipe holds no {kind}"
    # YAML 1.1 reads 1e-4 as text: a float needs a dot and a signed exponent there.
    if isinstance(value, str) and _FLOAT_TEXT.fullmatch(value):
        value = float(value)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else _INVALID


def _unknown(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    nearest = f"nearest name: {near[0]}; " if near else ""
    return f"unknown key; {nearest}expected one of {', '.join(names)}"


def _not_one_of(item: Item, names: list) -> str:
    near = difflib.get_close_matches(str(item.value), [str(n) for n in names], n=1, cutoff=0.5)
    nearest = f"; nearest: {near[0]}" if near else ""
    return f"given {_shown(item)}, expected {_one_of(names)}{nearest}"


def _one_of(names: Sequence) -> str:
    return str(names[0]) if len(names) == 1 else "one of " + ", ".join(str(n) for n in names)


def _names(cls: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(cls)[:3])


def _shown(item: Item) -> str:
    value = item.value
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return repr(value)
    return rules.shown(value)


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}


def _expected(hint: object, name: str = "") -> str:
    """A type in a user's words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if name == "model_config":
        return f"a section with `type` ({', '.join(MODEL_TYPES)}) and that structure's fields"
    if dataclasses.is_dataclass(hint):
        return f"a section with {', '.join(f.name for f in dataclasses.fields(hint))}"
    if origin is typing.Literal:
        return _one_of(args)
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"a list of {count}{_PLURALS[args[0]]}"
    if origin in (typing.Union, types.UnionType):
        return f"{_expected(args[0])} or null"
    return _KINDS[hint]
