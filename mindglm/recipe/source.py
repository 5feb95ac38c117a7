"""YAML text -> a tree that remembers where each key and value stands; overrides and a base file joined to it.

Of YAML only what a recipe needs is read. Tags are refused: they make objects. An alias stands for a single value, never
for a section or list, so that a few lines cannot unfold into gigabytes. A plain word is null, true or false, a decimal
number (1e-6 too), or else text: `no` is a word here and `010` is no number, unlike YAML 1.1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from mindglm.errors import UserError
from mindglm.recipe import wording

# PyYAML's C parser where it is built in: a recipe takes 2 ms with it instead of 20.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

COMMAND_LINE = "command line"
BASE = "base"
MAX_BYTES, MAX_DEPTH = 2**20, 20

_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "True": True, "TRUE": True,
          "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands."""

    file: str
    """A path, or COMMAND_LINE."""
    line: int
    """From 1; of the command line: which of its overrides."""
    column: int
    """From 1; of the command line: in that override."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Invalid:
    """Stands for a value that has been complained about."""


INVALID = Invalid()


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, at which dotted key, and what to say about it."""

    where: Place
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


@dataclass
class Item:
    """A value, where it stands, and where its key stands."""

    value: object
    """A dict[str, Item], a list[Item], a scalar of Python or INVALID."""
    where: Place
    key_where: Place


@dataclass
class _Open:
    """A mapping or sequence whose end has not come yet."""

    item: Item
    path: str
    tagged: bool
    key: str | None = None
    """Of a mapping: the key whose value comes next."""
    key_where: Place | None = None


def read(path: str | Path) -> str:
    """The text of a recipe file. Raises UserError when it cannot be read or is larger than MAX_BYTES."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe file; recipes of this suite stand in recipes/") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a recipe file (.yaml) in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES:,} bytes, expected a recipe, which is a page or two of text")
    return text


def parse(text: str, name: str, problems: list[Problem]) -> Item:
    """The tree of a recipe's text. `name` stands for the file in messages.

    Raises UserError when the text is no YAML, no mapping, or more than a recipe may hold: nothing else could be said
    about it. Mistakes that leave the rest readable, such as a key given twice, are appended to `problems`.
    """
    try:
        tree = _Builder(lambda mark: Place(name, mark.line + 1, mark.column + 1), problems).build(text)
    except yaml.YAMLError as error:
        raise UserError(_yaml_message(name, error)) from None
    if tree is None or not isinstance(tree.value, dict):
        raise UserError(
            f"{name}: a recipe is a YAML mapping of sections (trainer, runner_config, ...); this file is not"
        )
    return tree


def graft(tree: Item, override: str, number: int, problems: list[Problem]) -> None:
    """Sets one `dotted.key=value` of the command line, its `number`-th from 1, in the tree; the value is YAML."""
    key, equals, text = override.partition("=")
    begin = Place(COMMAND_LINE, number, len(key) - len(key.lstrip()) + 1)
    behind = Place(COMMAND_LINE, number, len(key) + len(equals) + 1)
    key = key.strip()
    path = key.split(".")
    if not equals or not all(path):
        told = f"given {override!r}, expected key=value such as runner_config.stop_step=100"
        problems.append(Problem(begin, "", told))
        return
    if path == [BASE]:
        problems.append(Problem(begin, BASE, "is read from the recipe file only; name another file to train by"))
        return
    try:
        # Characters count, not lines: an argument is one line to the shell, whatever it holds.
        value = _Builder(lambda mark: replace(behind, column=behind.column + mark.index), problems, key).build(text)
    except yaml.YAMLError:
        problems.append(Problem(behind, key, f"given {text!r}, which is no YAML value; put quotes around text"))
        return
    section, here = tree, begin
    for depth, part in enumerate(path[:-1]):
        if part not in section.value:
            section.value[part] = Item({}, here, here)
        section = section.value[part]
        if section.value is None:
            section.value = {}
        if not isinstance(section.value, dict):
            above = ".".join(path[: depth + 1])
            problems.append(Problem(here, key, f"{above} holds a value, not a section; override {above} itself"))
            return
        here = replace(here, column=here.column + len(part) + 1)
    section.value[path[-1]] = Item(value.value, value.where, here) if value else Item(None, behind, here)


def include(tree: Item, name: str, problems: list[Problem]) -> Item:
    """The tree over the one that its `base` names, a path seen from the folder of `name`; unchanged without a base.

    Sections are joined key by key; every other value, lists too, replaces that of the base.
    """
    item = tree.value.pop(BASE, None)
    if item is None:
        return tree
    if not isinstance(item.value, str):
        given = wording.shown(item.value)
        told = f"given {given}, expected the path of a recipe file, seen from this file's folder"
        problems.append(Problem(item.where, BASE, told))
        return tree
    path = str(Path(name).parent / item.value)
    try:
        below = parse(read(path), path, problems)
    except UserError as error:
        problems.append(Problem(item.where, BASE, str(error)))
        return tree
    deeper = below.value.pop(BASE, None)
    if deeper is not None:
        problems.append(Problem(deeper.key_where, BASE, f"{path} is itself the base of {name}; a base has none"))
    return _over(below, tree)


def _over(below: Item, above: Item) -> Item:
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    joined = dict(below.value)
    for key, item in above.value.items():
        joined[key] = _over(joined[key], item) if key in joined else item
    return Item(joined, above.where, above.key_where)


def scalar(text: str) -> object:
    """What a plain word of YAML means in a recipe."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Builder:
    """Parser events -> Items, without recursion."""

    def __init__(self, place: Callable[[yaml.Mark], Place], problems: list[Problem], path: str = ""):
        """place: where a mark of the parser stands. path: dotted key of the whole."""
        self._place_of, self._problems, self._root_path = place, problems, path
        self._stack: list[_Open] = []
        self._anchors: dict[str, Item] = {}
        self._root: Item | None = None

    def build(self, text: str) -> Item | None:
        """None for an empty text. Raises yaml.YAMLError, and UserError for what is larger than a recipe."""
        documents = 0
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise UserError(f"{self._place(event)}: a second document begins, expected one recipe a file; "
                                    "remove the line ---")
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._begin(event)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                ended = self._stack.pop()
                self._finish(Item(INVALID, ended.item.where, ended.item.key_where) if ended.tagged else ended.item)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
        return self._root

    def _place(self, event) -> Place:
        return self._place_of(event.start_mark)

    def _path(self) -> str:
        """Dotted key of what comes next."""
        if not self._stack:
            return self._root_path
        top = self._stack[-1]
        if isinstance(top.item.value, list):
            return f"{top.path}[{len(top.item.value)}]"
        return f"{top.path}.{top.key}" if top.path and top.key else top.key or top.path

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].item.value, dict) and self._stack[-1].key is None

    def _complain(self, where: Place, message: str) -> Invalid:
        self._problems.append(Problem(where, self._path(), message))
        return INVALID

    def _refuse_tag(self, event) -> None:
        if event.tag is not None:
            self._complain(self._place(event), f"given the YAML tag {event.tag}, expected a value without one")

    def _remember(self, event, item: Item) -> None:
        if event.anchor is not None:
            self._anchors[event.anchor] = item

    def _begin(self, event) -> None:
        here = self._place(event)
        if len(self._stack) == MAX_DEPTH:
            raise UserError(f"{here}: sections nested deeper than {MAX_DEPTH}, expected a recipe")
        if self._wants_key():
            raise UserError(f"{here}: given a section or a list as a key, expected a name; put quotes around text")
        self._refuse_tag(event)
        item = Item({} if isinstance(event, yaml.MappingStartEvent) else [], here, self._key_place(here))
        self._remember(event, item)
        self._stack.append(_Open(item, self._path(), event.tag is not None))

    def _scalar(self, event) -> None:
        here = self._place(event)
        if self._wants_key():
            top = self._stack[-1]
            top.key, top.key_where = event.value, here
            self._refuse_tag(event)
            return
        self._refuse_tag(event)
        value = scalar(event.value) if event.implicit[0] else event.value
        item = Item(INVALID if event.tag is not None else value, here, self._key_place(here))
        self._remember(event, item)
        self._finish(item)

    def _alias(self, event) -> None:
        here = self._place(event)
        if self._wants_key():
            raise UserError(f"{here}: given the alias *{event.anchor} as a key, expected a name")
        item = self._anchors.get(event.anchor)
        if item is None:
            value = self._complain(here, f"given *{event.anchor}, which stands for nothing before it; write the value")
        elif isinstance(item.value, (dict, list)):
            value = self._complain(here, f"given *{event.anchor}, which stands for the section or list at "
                                         f"{item.where}, expected a value: write it out, or share sections by `base:`")
        else:
            value = item.value
        self._finish(Item(value, here, self._key_place(here)))

    def _key_place(self, here: Place) -> Place:
        return self._stack[-1].key_where or here if self._stack else here

    def _finish(self, item: Item) -> None:
        """Puts a whole item where it belongs."""
        if not self._stack:
            self._root = item
            return
        top = self._stack[-1]
        if isinstance(top.item.value, list):
            top.item.value.append(item)
            return
        if top.key in top.item.value:
            first = top.item.value[top.key].key_where
            self._problems.append(Problem(top.key_where, self._path(), f"given twice, first at {first}; keep one"))
        else:
            top.item.value[top.key] = item
        top.key = top.key_where = None


def _yaml_message(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{name}{place}: not valid YAML: {problem}; look at this line's indentation, brackets and colons"
