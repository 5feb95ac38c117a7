"""YAML text -> a tree that remembers where each value stands, and overrides grafted onto it."""

from dataclasses import dataclass

import yaml

from mindglm.errors import UserError

# PyYAML's C parser where it is built in: composing a recipe with it takes 2 ms instead of 20.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, at which dotted key, and what to say about it."""

    where: str
    """`file:line` or `command line`."""
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


@dataclass
class Item:
    """A value and its place. `value` is a dict[str, Item], a list[Item] or a scalar of Python."""

    value: object
    where: str


def parse(text: str, name: str, problems: list[Problem]) -> Item:
    """The tree of a recipe's text. `name` stands for the file in messages.

    Raises UserError when the text is no YAML or no mapping: nothing else could be said about it. Mistakes that leave
    the rest readable, such as a key given twice, are appended to `problems`.
    """
    try:
        node = yaml.compose(text, Loader=_LOADER)
        tree = _tree(node, lambda n: f"{name}:{n.start_mark.line + 1}", "", problems) if node else None
    except yaml.YAMLError as error:
        raise UserError(_yaml_message(name, error)) from None
    if tree is None or not isinstance(tree.value, dict):
        raise UserError(
            f"{name}: a recipe is a YAML mapping of sections (trainer, runner_config, ...); this file is not"
        )
    return tree


def graft(tree: Item, override: str, problems: list[Problem]) -> None:
    """Sets one `dotted.key=value` of the command line in the tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        problems.append(
            Problem(COMMAND_LINE, "", f"given {override!r}, expected key=value such as runner_config.stop_step=100")
        )
        return
    try:
        node = yaml.compose(text, Loader=_LOADER)
        value = _tree(node, lambda n: COMMAND_LINE, key, problems) if node else Item(None, COMMAND_LINE)
    except yaml.YAMLError:
        problems.append(Problem(COMMAND_LINE, key, f"given {text!r}, which is no YAML value; put quotes around text"))
        return
    section = tree
    for depth, part in enumerate(path[:-1]):
        if part not in section.value:
            section.value[part] = Item({}, COMMAND_LINE)
        section = section.value[part]
        if section.value is None:
            section.value = {}
        if not isinstance(section.value, dict):
            above = ".".join(path[: depth + 1])
            problems.append(
                Problem(COMMAND_LINE, key, f"{above} holds a value, not a section; override {above} itself")
            )
            return
    section.value[path[-1]] = value


def _tree(node: yaml.Node, where, path: str, problems: list[Problem]) -> Item:
    if isinstance(node, yaml.MappingNode):
        children: dict[str, Item] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            below = f"{path}.{key}" if path else key
            if key in children:
                problems.append(
                    Problem(where(key_node), below, f"given twice, first at {children[key].where}; keep one")
                )
                continue
            child = _tree(value_node, where, below, problems)
            # A section is looked for at its key, also when its first entry stands on the next line.
            children[key] = Item(child.value, where(key_node))
        return Item(children, where(node))
    if isinstance(node, yaml.SequenceNode):
        return Item([_tree(child, where, path, problems) for child in node.value], where(node))
    return Item(_scalar(node), where(node))


def _scalar(node: yaml.ScalarNode) -> object:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except ValueError:  # for instance a timestamp such as 2024-99-99
        return node.value


def _yaml_message(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{name}{line}: not valid YAML: {problem}; look at this line's indentation, brackets and colons"
