"""What `mindglm recipe show | diff | explain` print."""

import textwrap
from collections.abc import Iterator, Mapping

from mindglm.errors import UserError
from mindglm.recipe import differences, documentation, wording
from mindglm.recipe.documentation import Key
from mindglm.recipe.loading import Resolved, plain, to_yaml, value_to_yaml
from mindglm.recipe.source import Place

WIDTH, ORIGIN_COLUMN = 118, 60


def show(resolved: Resolved) -> str:
    """The resolved recipe, a key a line, with the origin of every value as a comment; it can be read back."""
    return "\n".join(_lines(plain(resolved.recipe), "", resolved.given, 0)) + "\n"


def _lines(section: dict, path: str, given: Mapping[str, Place], indent: int) -> Iterator[str]:
    for key, value in section.items():
        below = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield f"{' ' * indent}{key}:"
            yield from _lines(value, below, given, indent + 2)
        else:
            entry = f"{' ' * indent}{key}: {value_to_yaml(value)}"
            yield f"{entry:<{ORIGIN_COLUMN}}  # {origin(below, given)}"


def origin(key: str, given: Mapping[str, Place]) -> str:
    """Where a value comes from: file:line:column, command line:number:column, or default."""
    return str(given[key]) if key in given else "default"


def diff(first: Resolved, second: Resolved) -> str:
    """The keys whose values differ, both values with their origins, and what the change means for a resumed run."""
    changes = differences.between(to_yaml(first.recipe), to_yaml(second.recipe))
    if not changes:
        return "no value differs\n"
    return "".join(
        f"{change.key}\n"
        f"  - {value_to_yaml(change.before)}  # {origin(change.key, first.given)}\n"
        f"  + {value_to_yaml(change.after)}  # {origin(change.key, second.given)}\n"
        f"  on resume: {change.kind} ({change.reason})\n" for change in changes)


def explain(name: str) -> str:
    """What a key means. `name`: dotted, or its end alone (`warmup_steps`: every key of that name).

    Raises UserError that names the nearest key when there is none.
    """
    found = [key for key in documentation.keys() if key.path == name or key.path.endswith(f".{name}")]
    if name == "base":
        return f"base\n{_indented(documentation.BASE_DOC)}\n  expected: text\n"
    if not found:
        paths = {key.path for key in documentation.keys()}
        near = wording.nearest(name, paths) or wording.nearest(name, {path.rpartition(".")[2] for path in paths})
        raise UserError(f"{name}: no key of a recipe" + (f"; nearest: {near}" if near else "")
                        + "; `mindglm recipe explain` without a key lists all sections")
    return "\n".join(map(_page, found))


def contents() -> str:
    """The sections of a recipe, a line each."""
    return "".join(_row(key) for key in documentation.tree())


def _page(key: Key) -> str:
    head = f"{key.path}{f'  (with {key.when})' if key.when else ''}\n{_indented(key.doc)}\n"
    if key.children:
        return head + "".join(_row(child, "  ") for child in key.children)
    default = "none, it must be given" if key.required else value_to_yaml(
        list(key.default) if isinstance(key.default, tuple) else key.default)
    kind, reason = differences.class_of(key.path)
    return f"{head}  expected: {key.expected}\n  default: {default}\n  changed on resume: {kind} ({reason})\n"


def _row(key: Key, indent: str = "") -> str:
    when = f" with {key.when}" if key.when and not indent else ""
    row = f"{indent + key.name + when:<32} {first_sentence(key.doc)}"
    return (row if len(row) <= WIDTH else f"{row[:WIDTH - 4]} ...") + "\n"


def first_sentence(text: str) -> str:
    return text.split("\n")[0].split(". ")[0].rstrip(".")


def _indented(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
