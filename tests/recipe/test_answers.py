"""show, diff, explain: what is printed is true, and can be read back."""

import re

import pytest

from mindglm import recipe
from mindglm.errors import UserError
from mindglm.recipe import answers, differences, documentation, ranges, schema
from tests.recipe.helpers import KINDS, recipe_text, text_for


def written(tmp_path, text, name="r.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def origins(page):
    """{last part of the key: its origin} of what `show` printed."""
    rows = [re.fullmatch(r" *(\w+): .*?  # (.*)", line) for line in page.splitlines()]
    return {row[1]: row[2] for row in rows if row}


@pytest.mark.parametrize("trainer", KINDS)
def test_show_can_be_read_back(tmp_path, trainer):
    resolved = recipe.resolve(written(tmp_path, text_for(trainer)), ["seed=7"])
    assert recipe.loads(answers.show(resolved)) == resolved.recipe


def test_show_says_where_every_value_comes_from(tmp_path):
    base = written(tmp_path, recipe_text(), "base.yaml")
    path = written(tmp_path, "base: base.yaml\nrunner_config:\n  stop_step: 20\noptimizer: {betas: [0.8, 0.9]}\n")
    page = answers.show(recipe.resolve(path, ["ema.decay=0.5", "context={mode: 0}"]))
    found = origins(page)
    assert found["stop_step"] == f"{path}:3:14"
    assert found["betas"] == f"{path}:4:20"
    assert found["global_batch_size"] == f"{base}:3:36"
    assert (found["decay"], found["mode"]) == ("command line:1:11", "command line:2:16")
    assert found["device_target"] == found["weight_decay"] == "default"
    values = {line.split("#")[0].strip() for line in page.splitlines()}
    assert "stop_step: 20" in values and "betas: [0.8, 0.9]" in values and "eps: 1.0e-08" in values


def test_diff_names_both_values_their_places_and_what_a_resume_would_say(tmp_path):
    first = written(tmp_path, recipe_text(), "a.yaml")
    second = written(tmp_path, recipe_text().replace("1.e-3", "2e-3"), "b.yaml")
    told = answers.diff(recipe.resolve(first), recipe.resolve(second, ["checkpoint.keep_checkpoint_max=5"]))
    assert told == (
        "checkpoint.keep_checkpoint_max\n  - 2  # default\n  + 5  # command line:1:32\n"
        f"  on resume: safe ({differences.class_of('checkpoint')[1]})\n"
        f"lr_schedule.learning_rate\n  - 0.001  # {first}:4:30\n  + 0.002  # {second}:4:30\n"
        "  on resume: numerics (the learning rate)\n")
    assert answers.diff(recipe.resolve(first), recipe.resolve(first)) == "no value differs\n"


def test_explain_a_key_a_name_and_a_section():
    page = answers.explain("objective.preview_weight")
    assert page == answers.explain("preview_weight")
    assert page.startswith("objective.preview_weight  (with trainer.type ar_next_token)\n  Weight of a preview code")
    assert "  expected: a number, more than 0\n  default: 2.0\n  changed on resume: numerics" in page
    assert answers.explain("hidden_size").count("model.model_config.") == 2
    assert "\n  data_parallel " in answers.explain("parallel_config")
    assert "each at least 0 and less than 1" in answers.explain("optimizer.betas")
    assert "none, it must be given" in answers.explain("output_dir")
    assert answers.explain("base").startswith("base\n")
    with pytest.raises(UserError, match=r"^warmup_step: no key of a recipe; nearest: \S*warmup_steps; "):
        answers.explain("warmup_step")


def test_every_key_can_be_explained():
    for key in documentation.keys():
        page = answers.explain(key.path)
        assert key.doc and " ".join(key.doc.split())[:40] in " ".join(page.split()), key.path
    listed = answers.contents()
    assert all(f"\n{section}" in f"\n{listed}" for section in schema.hints(schema.Recipe))


def test_every_number_has_a_range():
    """What `check` refuses and `explain` tells; a key without a range would take any number."""
    for key in documentation.keys():
        leaves = set(ranges.leaves(key.hint)) if not key.children else set()
        if leaves & {int, float} and not schema.typing.get_origin(key.hint) is schema.typing.Literal:
            assert key.range is not None, f"{key.path} has no Range in mindglm/recipe/ranges.py"
