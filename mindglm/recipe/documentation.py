"""Every key that a recipe may hold, with its type, range, default and meaning, read from the schema itself."""

import ast
import dataclasses
import functools
import inspect
import sys
import typing
from dataclasses import dataclass

from mindglm.recipe import wording
from mindglm.recipe.ranges import Range, range_of
from mindglm.recipe.schema import MODEL_TYPES, OBJECTIVE_TYPES, TRAINED_MODEL, Recipe, hints

BASE_DOC = ("A recipe file, seen from this file's folder, whose keys this file goes over: sections are joined key by "
            "key, other values replaced. The base has no base of its own.")


@dataclass(frozen=True)
class Key:
    """One key of a recipe, a section or a value."""

    path: str
    """Dotted."""
    doc: str
    hint: object
    required: bool = False
    """Whether it must be given; a section never need be, but the keys in it may."""
    default: object = None
    range: Range | None = None
    when: str = ""
    """With which objective or model it stands, where not with all: "trainer.type ar_next_token"."""
    children: tuple["Key", ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def expected(self) -> str:
        """Type and range in words."""
        if self.children:
            return "a section"
        text = wording.expected(self.hint, self.name)
        if self.range is None or self.range.unbounded:
            return text
        return f"{text}, each {self.range}" if text.startswith("a list") else f"{text}, {self.range}"


@functools.cache
def tree() -> tuple[Key, ...]:
    """The top keys of a recipe, in the order of the schema."""
    return _keys(Recipe, "", "")


@functools.cache
def keys() -> tuple[Key, ...]:
    """All keys, sections before what is in them. A path comes once for each objective or model it stands with."""
    found: list[Key] = []
    waiting = list(reversed(tree()))
    while waiting:
        key = waiting.pop()
        found.append(key)
        waiting += reversed(key.children)
    return tuple(found)


def _keys(cls: type, path: str, when: str) -> tuple[Key, ...]:
    return tuple(key for field in dataclasses.fields(cls) for key in _of_field(cls, field, path, when))


def _of_field(cls: type, field: dataclasses.Field, path: str, when: str) -> list[Key]:
    """The key of a field; the objective's options and the model's structure give one for each kind."""
    below = f"{path}.{field.name}" if path else field.name
    hint = hints(cls)[field.name]
    if below == "objective":
        whens = {f"trainer.type {kind}": options for kind, options in OBJECTIVE_TYPES.items()}
        return [Key(below, class_doc(options), options, when=with_type, children=_keys(options, below, with_type))
                for with_type, options in whens.items()]
    if below == "model.model_config":
        return [_structure(kind, structure, below) for kind, structure in MODEL_TYPES.items()]
    if dataclasses.is_dataclass(hint):
        return [Key(below, class_doc(hint), hint, when=when, children=_keys(hint, below, when))]
    required = field.default is dataclasses.MISSING
    return [Key(below, field_docs(cls).get(field.name, ""), hint, required, None if required else field.default,
                range_of(cls, field.name), when)]


def _structure(kind: str, structure: type, path: str) -> Key:
    trains = [name for name, model in TRAINED_MODEL.items() if model == kind]
    when = f"type {kind}"
    chosen = Key(f"{path}.type", f"The structure: {kind} goes with trainer.type {' and '.join(trains)}.",
                 typing.Literal[kind], True, when=when)
    return Key(path, class_doc(structure), structure, when=when,
               children=(chosen, *_keys(structure, path, when)))


def class_doc(cls: type) -> str:
    """What a section means."""
    return inspect.cleandoc(cls.__doc__ or "")


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """{field: the text under it} of a dataclass."""
    body = _classes(cls.__module__)[cls.__name__].body
    docs = {}
    for field, after in zip(body, body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[field.target.id] = " ".join(str(after.value.value).split())
    return docs


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    source = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
