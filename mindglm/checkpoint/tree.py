"""Tensor names as a tree of text lines."""

from collections.abc import Mapping

Tree = dict[str, "Tree | str"]


def lines(leaves: Mapping[str, str], fold: bool = False, indent: int = 2) -> list[str]:
    """One line a tensor under its dotted parents. leaves: {tensor name: what to say of it}.

    fold: numbered neighbours with the same content below them become one, `{0..29}`.
    """
    root: Tree = {}
    for name, text in leaves.items():
        node = root
        *parents, last = name.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = text
    return _lines(root, fold, indent, width=20)


def _lines(node: Tree, fold: bool, indent: int, width: int) -> list[str]:
    out = []
    for label, child in _folded(node) if fold else node.items():
        while isinstance(child, dict) and len(child) == 1:
            (part, child), = child.items()
            label = f"{label}.{part}"
        if isinstance(child, str):
            out.append(f"{' ' * indent}{label:<{width}}  {child}")
        else:
            out += [f"{' ' * indent}{label}", *_lines(child, fold, indent + 2, width)]
    return out


def _folded(node: Tree) -> list[tuple[str, "Tree | str"]]:
    """Children, runs of numbered ones with equal content joined."""
    runs: list[tuple[list[str], Tree | str]] = []
    for label, child in node.items():
        if runs and label.isdigit() and runs[-1][0][-1].isdigit() and runs[-1][1] == child:
            runs[-1][0].append(label)
        else:
            runs.append(([label], child))
    return [(labels[0] if len(labels) == 1 else f"{{{labels[0]}..{labels[-1]}}}", child) for labels, child in runs]
