"""`mindglm recipe ...` as it is typed: what is printed, and how it exits."""

import json

import pytest

from mindglm import recipe
from mindglm.cli.main import main
from mindglm.recipe import json_schema
from tests.recipe.helpers import recipe_text
from tests.recipe.shipped import ROOT

NANO = ROOT / "recipes" / "nano"


@pytest.fixture
def files(tmp_path):
    """A good recipe and one with two mistakes."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(recipe_text())
    bad.write_text(recipe_text().replace("stop_step", "stop_stepp"))
    return str(good), str(bad)


def test_check_tells_the_mistakes_of_all_files_at_once(files, capsys):
    good, bad = files
    assert main(["recipe", "check", bad, good, "ema.decay=0.5"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: valid. ar_next_token on ArGenerator, 100 steps of 16 samples")
    assert f"{bad} has 2 mistakes" in err
    assert f"  {bad}:3:40: runner_config.stop_stepp: unknown key; nearest name: stop_step;" in err
    assert main(["recipe", "check", good, bad, "ema.decay=2"]) == 2
    out, err = capsys.readouterr()
    assert not out and f"{good}: command line:1:11: ema.decay: given 2.0" in err and f"{bad} has 3 mistakes" in err
    assert main(["recipe", "check", good]) == 0


def test_a_schedule_that_is_only_planned_is_refused_by_check_and_train(files, capsys):
    """`mindglm plan` takes it: tests/plan/test_command.py."""
    path, layout = files[0], ["parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=4"]
    with open(path, "a") as file:
        file.write("parallel_config: {pipeline_schedule: zb_h1}\n")
    place = f"{path}:{recipe_text().count(chr(10)) + 1}:38: parallel_config.pipeline_schedule: "
    for command in (["recipe", "check"], ["train"]):
        assert main([*command, path, *layout]) == 2
        err = capsys.readouterr().err
        assert f"mindglm: {place}given zb_h1, expected 1f1b or interleaved: MindSpore's tape" in err, err
    assert main(["recipe", "check", path, *layout, "parallel_config.pipeline_schedule=1f1b"]) == 0


def test_check_needs_a_file(capsys):
    assert main(["recipe", "check", "seed=1"]) == 2
    assert "expected a recipe file" in capsys.readouterr().err


def test_show_diff_explain_and_schema(files, capsys):
    good, _ = files
    assert main(["recipe", "show", good, "seed=3"]) == 0
    shown = capsys.readouterr().out
    assert "# command line:1:6\n" in shown and recipe.loads(shown).seed == 3
    assert main(["recipe", "show", "--plain", good]) == 0
    assert capsys.readouterr().out == recipe.to_yaml(recipe.load(good))
    assert main(["recipe", "diff", good, good, "seed=3"]) == 0
    assert capsys.readouterr().out.startswith("seed\n  - 0  # default\n  + 3  # command line:1:6\n")
    assert main(["recipe", "explain"]) == 0
    assert "\nparallel_config " in capsys.readouterr().out
    assert main(["recipe", "explain", "nonsense_key"]) == 2
    assert "no key of a recipe" in capsys.readouterr().err
    assert main(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema.build()))


def test_a_folder_is_no_recipe(capsys):
    assert main(["recipe", "check", str(NANO)]) == 2
    assert "is a folder, expected a recipe file" in capsys.readouterr().err
