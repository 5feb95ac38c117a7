"""The JSON Schema says what `recipe check` says, as far as a schema can: names, types, ranges, what must be given."""

import copy

import jsonschema
import pytest
import yaml

from mindglm.recipe import json_schema
from tests.recipe.helpers import KINDS, text_for
from tests.recipe.shipped import RECIPES, relative
from tests.recipe.test_mutations import mistakes

VALIDATOR = jsonschema.Draft7Validator(json_schema.build())


def faults(data):
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def test_it_is_a_schema():
    jsonschema.Draft7Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_shipped_recipes_fit(path):
    assert faults(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("trainer", KINDS)
def test_an_editor_sees_the_mistakes_that_check_sees(trainer):
    """All but one kind: a schema has no word for a text that is no file."""
    text = text_for(trainer)
    assert faults(yaml.safe_load(text)) == []
    unseen = [mistake.path for mistake in mistakes(text) if not faults(yaml.safe_load(mistake.made_in(text)))]
    assert unseen == []


@pytest.mark.parametrize("trainer", KINDS)
def test_what_must_be_given_is_asked_for_unless_a_base_may_give_it(trainer):
    whole = yaml.safe_load(text_for(trainer))
    for path in (("output_dir",), ("trainer", "type"), ("runner_config", "stop_step"), ("model", "model_config"),
                 ("model", "model_config", list(whole["model"]["model_config"])[1])):
        data = copy.deepcopy(whole)
        section = data
        for part in path[:-1]:
            section = section[part]
        del section[path[-1]]
        assert faults(data), path
        assert faults({**data, "base": "other.yaml"}) == [], path
    assert faults({"base": "other.yaml", "sede": 1})
