"""A tree of Items -> the dataclasses of the schema, with every mistake noted on the way."""

import dataclasses
import functools
import math
import types
import typing

from mindglm.recipe import rules, wording
from mindglm.recipe.schema import MODEL_TYPES, OBJECTIVE_TYPES, Recipe, hints
from mindglm.recipe.source import BASE, INVALID, Invalid, Item, Place, Problem


class Reader:
    """Walks the tree along the dataclasses; collects problems, finished parts and the places of what was given."""

    def __init__(self, problems: list[Problem], partial: bool = False):
        """partial: the base could not be read, and may hold what is not here; so nothing is called missing."""
        self.problems, self._partial = problems, partial
        self.parts: dict[str, rules.Part] = {}
        """Dotted path -> what could be read of each section, for the rules."""
        self.given: dict[str, Place] = {}
        """Dotted path -> where its value stands, for all that was given."""

    def place(self, path: str) -> Place:
        """Where a value stands; for one that takes its default, where its section begins."""
        while path not in self.given:
            path = path.rpartition("[" if path.endswith("]") else ".")[0]
        return self.given[path]

    def read_recipe(self, tree: Item) -> object:
        """A Recipe, or INVALID when something of it could not be read."""
        self.given[""] = tree.where
        return self._section(tree, Recipe, "")

    def _complain(self, where: Place, path: str, message: str) -> Invalid:
        self.problems.append(Problem(where, path, message))
        return INVALID

    def _section(self, item: Item, cls: type, path: str) -> object:
        """One mapping -> one dataclass."""
        if item.value is None:
            item = Item({}, item.where, item.key_where)
        if item.value is INVALID:
            return INVALID
        if not isinstance(item.value, dict):
            some = ", ".join(f.name for f in dataclasses.fields(cls)[:3])
            return self._complain(
                item.where, path, f"given {wording.shown(item.value)}, expected a section of keys such as {some}")
        # Of a section the key is what one looks for, also when its first entry stands on the next line.
        self.given[path] = item.key_where
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if cls is Recipe:
            item = _with_objective(item)
        under, values = f"{path}." if path else "", {}
        for key, child in item.value.items():
            below = under + key
            if key == "type" and key not in fields and path == "model.model_config":
                self.given[below] = child.where
                continue
            if key not in fields:
                names = [*fields, BASE] if cls is Recipe else list(fields)
                self._complain(child.key_where, below, wording.unknown_key(key, names, _elsewhere(key)))
                continue
            self.given[below] = child.where
            values[key] = self._field(child, cls, key, below, item)
        for name, field in fields.items():
            if name not in item.value:
                values[name] = self._default(item, cls, field, under + name)
        right = {name: value for name, value in values.items() if not _wrong(value)}
        lists = {name: {i: element for i, element in enumerate(value) if not _wrong(element)}
                 for name, value in values.items() if name not in right and type(value) is tuple}
        # A rule may ask a section below for what is right in it.
        sections = {name: self.parts[under + name] for name in values if under + name in self.parts}
        self.parts[path] = rules.Part(cls, right | sections, lists)
        return cls(**values) if len(right) == len(fields) else INVALID

    def _default(self, item: Item, cls: type, field: dataclasses.Field, path: str) -> object:
        hint = hints(cls)[field.name]
        if dataclasses.is_dataclass(hint):  # an absent section is an empty one: its own missing keys are named
            return self._section(Item({}, item.where, item.key_where), hint, path)
        if field.default is not dataclasses.MISSING:
            return field.default
        if self._partial:
            return INVALID
        return self._complain(item.key_where, path, f"missing; expected {wording.expected(hint, field.name)}")

    def _field(self, item: Item, cls: type, key: str, path: str, section: Item) -> object:
        if path == "model.model_config":
            return self._model_config(item, path)
        if path == "objective":
            return self._objective(item, path, section)
        return self._value(item, hints(cls)[key], path)

    def _model_config(self, item: Item, path: str) -> object:
        if item.value is INVALID:
            return INVALID
        kind = item.value.get("type") if isinstance(item.value, dict) else None
        if kind is None:
            return self._no_type(item, path)
        if kind.value is INVALID:
            return INVALID
        if not isinstance(kind.value, str) or kind.value not in MODEL_TYPES:
            return self._complain(kind.where, f"{path}.type", wording.not_one_of(kind.value, list(MODEL_TYPES)))
        return self._section(item, MODEL_TYPES[kind.value], path)

    def _no_type(self, item: Item, path: str) -> Invalid:
        """model_config without the key that says which structure its other keys belong to."""
        if not isinstance(item.value, dict):
            return self._complain(item.where, path, f"given {wording.shown(item.value)}, expected "
                                  f"{wording.expected(None, 'model_config')}")
        meant = wording.nearest("type", [key for key in item.value if abs(len(key) - len("type")) < 2])
        if meant is not None:
            where = item.value[meant].key_where
            return self._complain(where, f"{path}.{meant}", wording.unknown_key(meant, ["type"], None))
        if self._partial:
            return INVALID
        return self._complain(item.key_where, f"{path}.type", f"missing; expected one of {', '.join(MODEL_TYPES)}")

    def _objective(self, item: Item, path: str, section: Item) -> object:
        trainer = section.value.get("trainer")
        kind = trainer.value.get("type") if trainer and isinstance(trainer.value, dict) else None
        if kind is None or not isinstance(kind.value, str) or kind.value not in OBJECTIVE_TYPES:
            return INVALID  # trainer.type has been or will be complained about; its options are unknown until then
        return self._section(item, OBJECTIVE_TYPES[kind.value], path)

    def _value(self, item: Item, hint: object, path: str) -> object:
        if item.value is INVALID:
            return INVALID
        if dataclasses.is_dataclass(hint):
            return self._section(item, hint, path)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            assert len(args) == 2 and args[1] is type(None), f"{path}: only `X | None` is read"
            return None if item.value is None else self._value(item, args[0], path)
        if origin is typing.Literal:
            if any(item.value == a and type(item.value) is type(a) for a in args):
                return item.value
            return self._complain(item.where, path, wording.not_one_of(item.value, list(args)))
        if origin is tuple:
            return self._tuple(item, hint, args, path)
        value = _scalar(item.value, hint)
        if value == "":
            return self._complain(item.where, path, "given an empty text, expected text")
        if value is INVALID:
            quotable = hint is str and not isinstance(item.value, (dict, list, type(None)))
            return self._complain(item.where, path, f"given {wording.shown(item.value)}, expected "
                                  f"{wording.expected(hint)}" + ("; put it in quotes" if quotable else ""))
        return value

    def _tuple(self, item: Item, hint: object, args: tuple, path: str) -> tuple | Invalid:
        """Elements that are wrong are INVALID in it."""
        variable = args[-1] is Ellipsis
        if not isinstance(item.value, list) or not variable and len(item.value) != len(args):
            return self._complain(
                item.where, path, f"given {wording.shown(item.value)}, expected {wording.expected(hint)}")
        values = []
        for i, child in enumerate(item.value):
            self.given[f"{path}[{i}]"] = child.where
            values.append(self._value(child, args[0], f"{path}[{i}]"))
        return tuple(values)


def _wrong(value: object) -> bool:
    """Whether something of it has been complained about."""
    return value is INVALID or type(value) is tuple and any(map(_wrong, value))


@functools.cache
def _sections_by_key() -> dict[str, list[str]]:
    """{key: the top sections that have it}"""
    found: dict[str, list[str]] = {}
    for section, cls in hints(Recipe).items():
        if dataclasses.is_dataclass(cls):
            for field in dataclasses.fields(cls):
                found.setdefault(field.name, []).append(section)
    return found


def _elsewhere(key: str) -> str | None:
    """The dotted key of that name where exactly one section has it."""
    sections = _sections_by_key().get(key, [])
    return f"{sections[0]}.{key}" if len(sections) == 1 else None


def _with_objective(item: Item) -> Item:
    """The objective's options all have defaults, so the section may be left out."""
    if "objective" in item.value:
        return item
    return Item({**item.value, "objective": Item({}, item.where, item.key_where)}, item.where, item.key_where)


def _scalar(value: object, kind: type) -> object:
    if kind is bool or kind is str or isinstance(value, bool):
        return value if type(value) is kind else INVALID
    if kind is int:
        return value if type(value) is int else INVALID
    assert kind is float, f"a recipe holds no {kind}"
    return float(value) if type(value) in (int, float) and math.isfinite(value) else INVALID
