"""Every single mistake in every shipped recipe is caught at its place: a letter in a key, a type, a range.

The mistakes are made in the text, at the places that PyYAML's own nodes give.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import yaml

from mindglm import recipe
from mindglm.errors import UserError
from tests.recipe.shipped import RECIPES, relative

WITH_ANY_NUMBER = {"latents_mean"}
MORE_OUT_OF_RANGE = {"learning_rate": "2", "lr_end": "2", "weight_decay": "1.5", "betas": "1", "decay": "1", "eps": "0",
                     "condition_dropout": "1.01", "glyph_dropout": "1.01", "code_corruption": "1.01",
                     "prompt_dropout": "1.01", "seed": str(2**63), "mode": "2", "preview_weight": "0",
                     "global_batch_size": "0", "stop_step": "0", "data_parallel": "0", "pipeline_stage": "0",
                     "partial_rotary_factor": "1.5", "total_steps": "0"}


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A change of a recipe's text."""

    kind: str
    path: str
    start: int
    stop: int
    text: str
    line: int
    column: int
    said: str
    """Part of the message that it must get."""

    def made_in(self, text: str) -> str:
        return text[:self.start] + self.text + text[self.stop:]


def mistakes(text: str) -> Iterator[Mistake]:
    yield from _in_mapping(yaml.compose(text, Loader=yaml.SafeLoader), "")


def _in_mapping(node: yaml.MappingNode, path: str) -> Iterator[Mistake]:
    for key, value in node.value:
        below = f"{path}.{key.value}" if path else key.value
        typo = key.value[:-1] if len(key.value) > 3 else key.value * 2
        yield _mistake("typo", below, key, typo, f"unknown key; nearest name: {key.value};")
        yield from _in_value(value, below)


def _in_value(node: yaml.Node, path: str) -> Iterator[Mistake]:
    if isinstance(node, yaml.MappingNode):
        yield _mistake("type", path, node, "7", "given 7, expected a section")
        yield from _in_mapping(node, path)
        return
    if isinstance(node, yaml.SequenceNode):
        yield _mistake("type", path, node, "7", "given 7, expected a list")
        for i, child in enumerate(node.value):
            yield from _in_value(child, f"{path}[{i}]")
        return
    yield _mistake("type", path, node, "{a: 1}", "given a section, expected")
    yield _mistake("type", path, node, "[1, 2]", "given a list of 2, expected")
    yield from _in_scalar(node, path)


def _in_scalar(node: yaml.ScalarNode, path: str) -> Iterator[Mistake]:
    name = path.rpartition(".")[2].partition("[")[0]
    number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if path == "base":
        yield _mistake("range", path, node, "nowhere.yaml", "no such recipe file")
    elif number or node.tag == "tag:yaml.org,2002:bool":
        yield _mistake("type", path, node, "fast", "given 'fast', expected")
    else:
        yield _mistake("type", path, node, "7", "given 7, expected")
        yield _mistake("range", path, node, "''", "given ")
    if number and name not in WITH_ANY_NUMBER:
        yield _mistake("range", path, node, "-2", "given -2")
    if number and name in MORE_OUT_OF_RANGE:
        yield _mistake("range", path, node, MORE_OUT_OF_RANGE[name], "given ")


def _mistake(kind: str, path: str, node: yaml.Node, text: str, said: str) -> Mistake:
    start, stop = node.start_mark, node.end_mark.index
    if not isinstance(node, yaml.ScalarNode) and not node.flow_style:
        # PyYAML ends a block where the next token begins.
        stop = start.index + len(start.buffer[start.index:stop].rstrip())
    return Mistake(kind, path, start.index, stop, text, start.line + 1, start.column + 1, said)


def check_caught(path, mistake: Mistake) -> None:
    changed = mistake.made_in(path.read_text())
    with pytest.raises(UserError) as caught:
        recipe.loads(changed, str(path))
    where = f"{path}:{mistake.line}:{mistake.column}: "
    told = [line for line in str(caught.value).splitlines() if line.strip().startswith(where) and mistake.said in line]
    assert told, f"{mistake}\n{caught.value}"


def distinct() -> list[tuple]:
    """One recipe for each mistake that can be made in some recipe of the same objective."""
    found: dict[tuple, tuple] = {}
    for path in RECIPES:
        kind = recipe.load(path).trainer.type
        for mistake in mistakes(path.read_text()):
            key = (kind, mistake.kind, mistake.path.partition("[")[0], mistake.text)
            found.setdefault(key, (path, mistake))
    return list(found.values())


def test_each_mistake_is_caught_where_it_stands():
    made = distinct()
    assert len(made) > 500
    for path, mistake in made:
        check_caught(path, mistake)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_each_mistake_in_each_recipe(path):
    made = list(mistakes(path.read_text()))
    assert {mistake.kind for mistake in made} == {"typo", "type", "range"}
    for mistake in made:
        check_caught(path, mistake)
