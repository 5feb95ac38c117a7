"""What messages say of values and types, in a user's words."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Sequence

from mindglm.recipe.schema import MODEL_TYPES

_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}
SHOWN = 60
"""Characters of a value that a message repeats."""


def shown(value: object) -> str:
    """A value of Python as a recipe would write it; long ones are cut."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def expected(hint: object, name: str = "") -> str:
    """A type; `name` is the key that has it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if name == "model_config":
        return f"a section with `type` ({', '.join(MODEL_TYPES)}) and that structure's fields"
    if dataclasses.is_dataclass(hint):
        return f"a section with {', '.join(f.name for f in dataclasses.fields(hint))}"
    if origin is typing.Literal:
        return one_of(args)
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        inner = typing.get_args(args[0])
        return f"a list of {count}" + (f"[{', '.join(['number'] * len(inner))}]" if inner else _PLURALS[args[0]])
    if origin in (typing.Union, types.UnionType):
        return f"{expected(args[0])} or null"
    return _KINDS[hint]


def one_of(names: Sequence) -> str:
    return str(names[0]) if len(names) == 1 else "one of " + ", ".join(str(n) for n in names)


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    near = difflib.get_close_matches(given, list(names), n=1, cutoff=0.5)
    return near[0] if near else None


def unknown_key(key: str, names: Sequence[str], elsewhere: str | None) -> str:
    """elsewhere: the dotted key of that very name in another section."""
    near = nearest(key, names)
    if elsewhere is not None and near is None:
        return f"unknown key; it stands at {elsewhere}; expected one of {', '.join(names)}"
    hint = f"nearest name: {near}; " if near else ""
    return f"unknown key; {hint}expected one of {', '.join(names)}"


def not_one_of(value: object, names: Sequence) -> str:
    near = nearest(str(value), [str(n) for n in names])
    return f"given {shown(value)}, expected {one_of(names)}" + (f"; nearest: {near}" if near else "")
