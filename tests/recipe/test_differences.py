"""A resumed run's recipe against the stored one: every key has a class, and the classes do what they say."""

import dataclasses

import pytest
import yaml

from mindglm.errors import UserError
from mindglm.recipe import differences

BASE = {
    "seed": 1, "strict_numerics": False, "trainer": {"type": "ar_next_token", "model_name": "x"},
    "runner_config": {"global_batch_size": 8, "gradient_accumulation_steps": 1, "stop_step": 100},
    "parallel_config": {"data_parallel": 1, "micro_batch_num": 1},
    "lr_schedule": {"learning_rate": 0.1, "total_steps": -1},
    "optimizer": {"eps": 1e-8, "betas": [0.9, 0.95]},
    "model": {"model_config": {"type": "ArGenerator", "text_config": {"hidden_size": 32}}, "frozen": []},
    "monitor_config": {"log_interval": 1},
}


def changed(**values):
    """The YAML of BASE with dotted keys (`__` for the dot) set."""
    tree = yaml.safe_load(yaml.safe_dump(BASE))
    for key, value in values.items():
        *sections, name = key.split("__")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    return yaml.safe_dump(tree)


def kinds(**values):
    return {change.key: change.kind for change in differences.of_resume(changed(), changed(**values))}


def test_every_key_of_the_schema_has_a_class_and_no_class_is_stale():
    """A new key: is it safe to change on resume, does it change numerics, or is it forbidden?"""
    keys = differences.schema_keys()
    assert len(keys) > 100 and "model.model_config.text_config.hidden_size" in keys and "objective.kl_weight" in keys
    for key in keys:
        kind, reason = differences.class_of(key)
        assert kind in (differences.SAFE, differences.NUMERICS, differences.FORBIDDEN) and "not know" not in reason
    for entry in differences.CLASSES:
        assert any(key == entry or key.startswith(f"{entry}.") for key in keys), f"{entry} is no key any more"


def test_no_class_covers_a_whole_recipe():
    """An unknown top-level key must not find a class by accident."""
    assert "" not in differences.CLASSES
    sections = {field.name for field in dataclasses.fields(differences.Recipe)}
    assert {entry.partition(".")[0] for entry in differences.CLASSES} == sections


def test_same_recipe_has_no_changes():
    assert differences.of_resume(changed(), changed()) == []


@pytest.mark.parametrize("values, kind", [
    ({"monitor_config__log_interval": 10}, "safe"),
    ({"parallel_config__data_parallel": 4}, "safe"),
    ({"trainer__model_name": "y"}, "safe"),
    ({"seed": 2}, "numerics"),
    ({"optimizer__betas": [0.9, 0.99]}, "numerics"),
    ({"lr_schedule__learning_rate": 0.2}, "numerics"),
    ({"runner_config__global_batch_size": 16}, "numerics"),
])
def test_classes(values, kind):
    assert list(kinds(**values).values()) == [kind]


def test_longer_run_is_safe_where_the_schedule_does_not_hang_on_it():
    assert kinds(runner_config__stop_step=200) == {"runner_config.stop_step": "numerics"}
    fixed = {"lr_schedule__total_steps": 300}
    before, after = changed(**fixed), changed(**fixed, runner_config__stop_step=200)
    assert [change.kind for change in differences.of_resume(before, after)] == ["safe"]
    pinned = kinds(lr_schedule__total_steps=100, runner_config__stop_step=200)  # the schedule still ends at 100
    assert set(pinned.values()) == {"safe"} and len(pinned) == 2


def test_a_key_of_another_release_changes_numerics():
    text = changed() + "newfangled: 3\n"
    assert [(change.key, change.kind) for change in differences.of_resume(text, changed())] == [
        ("newfangled", "numerics")]


def test_strict_run_keeps_the_size_of_its_micro_batches():
    """Other layouts of the same micro-batches are safe; another micro-batch size is not, to the bit."""
    strict = {"strict_numerics": True}
    before = changed(**strict, runner_config__gradient_accumulation_steps=4)
    same = changed(**strict, runner_config__gradient_accumulation_steps=2, parallel_config__data_parallel=2)
    assert {change.kind for change in differences.of_resume(before, same)} == {"safe"}
    other = changed(**strict, runner_config__gradient_accumulation_steps=2)
    assert {change.kind for change in differences.of_resume(before, other)} == {"numerics"}


def test_forbidden_changes_are_refused_all_at_once():
    with pytest.raises(UserError) as refused:
        differences.of_resume(changed(), changed(
            model__model_config__text_config__hidden_size=64, trainer__type="flow_matching", model__frozen=["norm"],
            seed=3))
    text = str(refused.value)
    assert "model.model_config.text_config.hidden_size: 32 -> 64" in text and "model.frozen: [] -> ['norm']" in text
    assert "trainer.type: 'ar_next_token' -> 'flow_matching'" in text and "seed" not in text
    assert "output_dir" in text


def test_key_that_the_older_recipe_did_not_have_stands_at_its_default():
    """A checkpoint of an earlier release lacks new keys: no change unless the recipe sets them."""
    after = changed(monitor_config__sample_step_interval=0, optimizer__no_decay=["norm", "bias", "embed"])
    assert differences.of_resume(changed(), after) == []
    change, = differences.of_resume(changed(), changed(monitor_config__sample_step_interval=5))
    assert (change.before, change.after) == (0, 5)


def test_sentences():
    safe, = differences.of_resume(changed(), changed(monitor_config__log_interval=10))
    assert str(safe).startswith("changed since that checkpoint: monitor_config.log_interval: 1 -> 10 (safe")
    numerics, = differences.of_resume(changed(), changed(seed=9))
    assert "seed: 1 -> 9. This changes numerics" in str(numerics)
