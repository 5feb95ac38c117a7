"""What a recipe file may hold as YAML, how a base and overrides join it, and what is refused before it can do harm."""

import dataclasses
import time

import pytest

from mindglm import recipe
from mindglm.errors import UserError
from mindglm.recipe import source
from tests.recipe.helpers import recipe_text
from tests.recipe.test_loading import refused

END = recipe_text().count("\n")
"""Lines of a small recipe."""


@pytest.mark.parametrize("word, value", [
    ("1e-6", 1e-6), ("1.e-6", 1e-6), ("1E+3", 1000.0), (".5", 0.5), ("-3", -3), ("0", 0), ("+7", 7), ("", None),
    ("~", None), ("null", None), ("true", True), ("False", False), ("no", "no"), ("on", "on"), ("010", "010"),
    ("1_000", "1_000"), ("0x10", "0x10"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), (".inf", ".inf"),
    ("1e", "1e"), ("0.10", 0.1), ("00.5", "00.5")])
def test_words_mean_what_they_look_like(word, value):
    tree = source.parse(f"a: {word}\nb: '{word}'\n", "r.yaml", problems := [])
    found = tree.value["a"].value
    assert found == value and type(found) is type(value)
    assert tree.value["b"].value == word and not problems


def test_places_of_keys_and_values():
    tree = source.parse("a:\n  - x\n  - {b: 1,\n     c: [2, 3]}\n", "r.yaml", [])
    pair = tree.value["a"].value[1]
    assert str(tree.value["a"].key_where) == "r.yaml:1:1" and str(tree.value["a"].where) == "r.yaml:2:3"
    assert str(pair.where) == "r.yaml:3:5" and str(pair.value["b"].where) == "r.yaml:3:9"
    assert str(pair.value["c"].key_where) == "r.yaml:4:6"
    assert [str(item.where) for item in pair.value["c"].value] == ["r.yaml:4:10", "r.yaml:4:13"]


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system ['true']", "!!str 3", "!include other.yaml",
                                   "!!binary aGk=", "! x"])
def test_tags_are_refused_and_nothing_is_made_of_them(value):
    (line,) = refused(recipe_text() + f"seed: {value}\n")
    assert line.startswith(f"r.yaml:{END + 1}:7: seed: given the YAML tag ")
    assert line.endswith("expected a value without one")


def test_an_alias_stands_for_a_single_value():
    text = recipe_text().replace("stop_step: 100", "stop_step: &n 100")
    loaded = recipe.loads(text.replace("save_checkpoint_steps: 10", "save_checkpoint_steps: *n"))
    assert loaded.checkpoint.save_checkpoint_steps == 100


def test_aliases_of_sections_are_refused_so_that_nothing_unfolds():
    """A billion laughs: nine lists of nine aliases each."""
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    start = time.process_time()
    lines = refused(recipe_text() + bomb)
    assert time.process_time() - start < 1
    assert any(f"given *a0, which stands for the section or list at r.yaml:{END + 1}:5" in line for line in lines)
    (line,) = refused(recipe_text() + "ema: &e {decay: 0.5, warmup_steps: *e}\n")
    assert line.startswith(f"r.yaml:{END + 1}:36: ema.warmup_steps: given *e, which stands for the section")
    (line,) = refused(recipe_text() + "seed: *nothing\n")
    assert line.startswith(f"r.yaml:{END + 1}:7: seed: given *nothing, which stands for nothing before it")


@pytest.mark.parametrize("text, told", [
    ("a: " + "[" * 100_000, "nested deeper than 20"),
    ("a: " + "{b: " * 5000, "nested deeper than 20"),
    ("seed: 1\n---\nseed: 2\n", "r.yaml:2:1: a second document begins"),
    ("? [1, 2]\n: 3\n", "a section or a list as a key"),
    ("a: &x 1\n*x : 2\n", "given the alias *x as a key"),
    ("a: \x00", "not valid YAML"),
    ("a: 'b", "r.yaml:1:6: not valid YAML"),
    ("\ta: b", "r.yaml:1:1: not valid YAML"),
])
def test_what_is_no_recipe_ends_in_one_message(text, told):
    (line,) = refused(text)
    assert told in line


def test_merge_keys_are_no_keys_here():
    (line,) = refused(recipe_text() + "ema:\n  <<: {decay: 0.5}\n")
    assert line.startswith(f"r.yaml:{END + 2}:3: ema.<<: unknown key")


def test_files_without_end_are_not_read(tmp_path):
    with pytest.raises(UserError, match="/dev/zero: more than 1,048,576 bytes"):
        recipe.load("/dev/zero")
    (tmp_path / "r.yaml").write_text(recipe_text() + "base: /dev/zero\n")
    with pytest.raises(UserError, match=rf"r\.yaml:{END + 1}:7: base: /dev/zero: more than"):
        recipe.load(tmp_path / "r.yaml")


# ---- base


@pytest.fixture
def base(tmp_path):
    (tmp_path / "common").mkdir()
    path = tmp_path / "common" / "base.yaml"
    path.write_text(recipe_text() + "monitor_config: {log_interval: 5}\noptimizer: {no_decay: [a, b]}\n")
    return path


def above(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(f"base: common/base.yaml\n{text}")
    return path


def test_a_base_is_gone_over_key_by_key(tmp_path, base):
    path = above(tmp_path, "runner_config: {stop_step: 7}\noptimizer: {no_decay: [c]}\n")
    loaded, below = recipe.load(path, ["runner_config.global_batch_size=8"]), recipe.load(base)
    assert (loaded.runner_config.stop_step, loaded.runner_config.global_batch_size) == (7, 8)
    assert loaded.optimizer.no_decay == ("c",) and loaded.monitor_config.log_interval == 5
    assert loaded.model == below.model and below.runner_config.global_batch_size == 16


def test_an_emptied_section_takes_its_defaults(tmp_path, base):
    assert recipe.load(above(tmp_path, "monitor_config:\n")).monitor_config.log_interval == 1


def test_mistakes_of_file_base_and_command_line_are_told_at_once(tmp_path, base):
    base.write_text(base.read_text().replace("seed: 1", "").replace("log_interval: 5", "log_interval: 0"))
    path = above(tmp_path, "sede: 3\n")
    with pytest.raises(UserError) as caught:
        recipe.load(path, ["ema.decay=2"])
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert [line.split(": ")[0] for line in lines[1:]] == [f"{path}:2:1", f"{base}:{END + 1}:32",
                                                          "command line:1:11"]


@pytest.mark.parametrize("line, told", [
    ("base: nowhere.yaml", "base: .*nowhere.yaml: no such recipe file"),
    ("base: [a]", "given a list of 1, expected the path of a recipe file"),
    ("base: ''", "is a folder"),
    ("base: common", "is a folder"),
    ("base: deep.yaml", "is itself the base of .*r.yaml; a base has none"),
])
def test_a_base_that_cannot_be(tmp_path, base, line, told):
    (tmp_path / "deep.yaml").write_text(f"base: common/base.yaml\n{recipe_text()}")
    (tmp_path / "r.yaml").write_text(f"{line}\n{recipe_text()}")
    with pytest.raises(UserError, match=told):
        recipe.load(tmp_path / "r.yaml")


def test_nothing_is_called_missing_that_the_unread_base_may_hold(tmp_path):
    (tmp_path / "r.yaml").write_text("base: nowhere.yaml\nmodel: {model_config: {num_layers: 3}}\nseed: -1\n")
    with pytest.raises(UserError) as caught:
        recipe.load(tmp_path / "r.yaml")
    assert [line.strip().split(": ")[1] for line in str(caught.value).splitlines()[1:]] == ["base", "seed"]


def test_the_command_line_gives_no_base(tmp_path, base):
    with pytest.raises(UserError, match="^command line:1:1: base: is read from the recipe file only"):
        recipe.load(base, ["base=x.yaml"])


def test_overrides_may_not_carry_tags_or_sections_for_values():
    lines = refused(recipe_text(), "seed=!!python/name:os.system", "ema=&a [*a]", "trainer.type=[*b]")
    assert all(line.startswith("command line:") for line in lines)
    assert any(line.startswith("command line:1:6: seed: given the YAML tag") for line in lines)
    assert any(line.startswith("command line:2:9: ema[0]: given *a, which stands for the section") for line in lines)


@pytest.mark.parametrize("text", ["1e-6", "no", "true", "null", "~", "3", "a: b", "#", "'", "日本", "", "1.5", "-"])
def test_texts_survive_being_printed(text):
    written = recipe.loads(recipe_text(), overrides=["trainer.model_name=x"])
    changed = dataclasses.replace(written, trainer=dataclasses.replace(written.trainer, model_name=text or "x"))
    assert recipe.loads(recipe.to_yaml(changed)) == changed
