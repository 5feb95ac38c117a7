"""The schema of recipes as JSON Schema, by which a YAML language server completes and checks while one types.

Draft 7, the one that YAML editors know. Types, names and ranges are here; rules over several values are those of
`mindglm recipe check`.
"""

import math
import types
import typing
from collections.abc import Iterable

from mindglm.recipe import documentation
from mindglm.recipe.documentation import Key
from mindglm.recipe.ranges import Range
from mindglm.recipe.schema import MODEL_TYPES, OBJECTIVE_TYPES

_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def build() -> dict:
    """The schema of a recipe file. A file with a `base` may leave out whatever its base gives."""
    top = {key.path: key for key in documentation.tree() if not key.when}
    objectives = _alternatives("objective")
    properties = {"base": {"type": "string", "description": documentation.BASE_DOC},
                  **{name: _of(key) for name, key in top.items()},
                  "objective": {"type": ["object", "null"], "description": "Options of what trainer.type names."}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mindglm recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "if": {"not": {"required": ["base"]}},
        "then": _complete(documentation.tree()),
        "allOf": [{"if": {"required": ["trainer"], "properties": {"trainer": {
                      "required": ["type"], "properties": {"type": {"const": kind}}}}},
                   "then": {"properties": {"objective": _of(objectives[f"trainer.type {kind}"])}}}
                  for kind in OBJECTIVE_TYPES],
    }


def _alternatives(path: str) -> dict[str, Key]:
    """{when: key} of a section that there are several kinds of."""
    return {key.when: key for key in documentation.keys() if key.path == path}


def _of(key: Key) -> dict:
    said = {"description": key.doc}
    if key.path == "model":
        return {"type": ["object", "null"], **said, "additionalProperties": False,
                "properties": {**{child.name: _of(child) for child in key.children if not child.when},
                               "model_config": _model_config()}}
    if key.children:
        return {"type": ["object", "null"], **said, "additionalProperties": False,
                "properties": {child.name: _of(child) for child in key.children}}
    if not key.required:
        said["default"] = list(key.default) if isinstance(key.default, tuple) else key.default
    return {**_value(key.hint, key.range), **said}


def _model_config() -> dict:
    """The structures; which one is said by `type`, so that an editor offers that structure's fields only."""
    structures = _alternatives("model.model_config")
    return {
        "type": "object", "description": "`type` and the fields of that structure.",
        "properties": {"type": {"enum": list(MODEL_TYPES)}},
        "allOf": [{"if": {"required": ["type"], "properties": {"type": {"const": kind}}},
                   "then": _of(structures[f"type {kind}"])} for kind in MODEL_TYPES],
    }


def _complete(keys: Iterable[Key]) -> dict:
    """What must be given of a section, and of the sections in it, where no base may give it."""
    plain = [key for key in keys if not key.when or key.path not in ("objective", "model.model_config")]
    needed = {key.name: key for key in plain if _needed(key)}
    inside = {name: _complete(key.children) for name, key in needed.items() if key.children}
    structures = [key for key in keys if key.path == "model.model_config"]
    if structures:
        needed["model_config"] = structures[0]
        inside["model_config"] = {"required": ["type"], "allOf": [
            {"if": {"properties": {"type": {"const": key.when.removeprefix("type ")}}}, "then": _complete(key.children)}
            for key in structures]}
    return {"type": "object", "required": list(needed), "properties": inside} if needed else {}


def _needed(key: Key) -> bool:
    return key.required or any(map(_needed, key.children))


def _value(hint: object, bounds: Range | None) -> dict:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {**_value(args[0], bounds), "type": [_TYPES[args[0]], "null"]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is tuple:
        sizes = {} if args[-1] is Ellipsis else {"minItems": len(args), "maxItems": len(args)}
        return {"type": "array", "items": _value(args[0], bounds), **sizes}
    return {"type": _TYPES[hint], **({"minLength": 1} if hint is str else _bounds(bounds))}


def _bounds(bounds: Range | None) -> dict:
    if bounds is None or bounds.unbounded:
        return {}
    limits: dict = {"minimum" if bounds.low_allowed else "exclusiveMinimum": bounds.low}
    if bounds.high is not None and math.isfinite(bounds.high):
        limits["maximum" if bounds.high_allowed else "exclusiveMaximum"] = bounds.high
    return limits if bounds.also is None else {"anyOf": [{"const": bounds.also}, limits]}
