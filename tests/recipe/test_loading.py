"""Recipes are read whole or refused with every mistake at once."""

import ast
import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from mindglm import recipe
from mindglm.errors import UserError
from mindglm.recipe import models, schema
from tests.recipe.helpers import KINDS, recipe_text, text_for


def refused(text, *overrides):
    """The lines of the error, without the heading."""
    with pytest.raises(UserError) as caught:
        recipe.loads(text, "r.yaml", overrides)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in (lines[1:] if len(lines) > 1 else lines)]


@pytest.mark.parametrize("trainer", KINDS)
def test_every_kind_loads_with_defaults_and_prints_itself(trainer):
    loaded = recipe.loads(text_for(trainer))
    assert type(loaded.objective) is schema.OBJECTIVE_TYPES[trainer]
    assert loaded.model_type == schema.TRAINED_MODEL[trainer]
    assert loaded.optimizer == schema.OptimizerSection()
    printed = recipe.to_yaml(loaded)
    assert recipe.loads(printed) == loaded
    assert "no_decay" in printed and "max_skipped_steps" in printed


def test_values_arrive_in_their_types():
    loaded = recipe.loads(recipe_text())
    config = loaded.model.model_config
    assert isinstance(config, models.ArGeneratorConfig) and isinstance(config.text_config, models.TextConfig)
    assert config.text_config.mrope_section == (2, 3, 3)
    assert config.text_config.partial_rotary_factor == 0.5
    assert loaded.lr_total_steps == 100
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.seed = 3


@pytest.mark.parametrize(
    "given, expected", [("1e-4", 1e-4), ("1.e-4", 1e-4), ("1E-4", 1e-4), ("1", 1.0), ("5e+0", 5.0)]
)
def test_floats_in_any_notation(given, expected):
    loaded = recipe.loads(recipe_text(), overrides=[f"runner_wrapper.max_grad_norm={given}"])
    value = loaded.runner_wrapper.max_grad_norm
    assert value == expected and type(value) is float


@pytest.mark.parametrize("given", ["yes", ".inf", ".nan", "fast", "[1]", "null", "{a: 1}"])
def test_what_is_no_number(given):
    (line,) = refused(recipe_text().replace("1.e-3", given))
    assert line.startswith("r.yaml:4:30: lr_schedule.learning_rate: given ") and "expected a number" in line


def test_override_of_values_sections_and_lists():
    loaded = recipe.loads(
        recipe_text(),
        overrides=[
            "runner_config.stop_step=7",
            "objective.preview_weight=3",
            "model.fresh=[a cat, 'a sign that says \"NO\"']",
            "context={mode: 0}",
            "pretrained_model_dir=",
            "lr_schedule.learning_rate=5e-4",
            "seed=1",
            "seed=2",
        ],
    )
    assert loaded.runner_config.stop_step == 7 and loaded.lr_total_steps == 7
    assert loaded.objective.preview_weight == 3.0
    assert loaded.model.fresh == ("a cat", 'a sign that says "NO"')
    assert loaded.context.mode == 0 and loaded.pretrained_model_dir is None
    assert loaded.lr_schedule.learning_rate == 5e-4
    assert loaded.seed == 2


def test_mistakes_on_the_command_line_are_named_so():
    lines = refused(
        recipe_text(), "runner_config.stop_stp=7", "seed", "seed=[", "output_dir.x=1", "ema.decay=high", "=3"
    )
    told = ["1:15: runner_config.stop_stp: unknown key; nearest name: stop_step",
            "2:1: given 'seed', expected key=value", "3:6: seed: given '[', which is no YAML value",
            "4:1: output_dir.x: output_dir holds a value, not a section",
            "5:11: ema.decay: given 'high', expected a number", "6:1: given '=3', expected key=value"]
    assert len(lines) == len(told)
    assert all(line.startswith(f"command line:{start}") for line, start in zip(lines, told)), lines


@pytest.mark.parametrize("override, place, key", [
    ("ema={decay: 0.5, wramup_steps: 3}", 18, "ema.wramup_steps"),
    ("ema={decay: 0.5,\n warmup_steps: [é]}", 33, "ema.warmup_steps"),
    (" optimizer.betas = [0.9, 日]", 26, "optimizer.betas[1]"),
    ("model.model_config.vq_config.embed=3", 30, "model.model_config.vq_config.embed"),
    ("seed=", 6, "seed"),
    ("optimiser.betas=[0.9, 0.95]", 1, "optimiser")])
def test_a_mistake_in_an_override_is_told_with_its_number_and_column(override, place, key):
    """Here the second of three; the others are right."""
    (line,) = refused(recipe_text(), "seed=1", override, "context.mode=1")
    assert line.startswith(f"command line:2:{place}: {key}: ")


def test_all_mistakes_at_once_in_the_order_of_the_file():
    text = """output_dir: out
trainer: {type: ar_next_tokn, model_name: 3}
runner_config:
  global_batch_size: 30
  stop_stepp: 10
  gradient_accumulation_steps: 4
lr_schedule: {learning_rate: fast}
optimiser: {type: AdamW}
parallel_config: {data_parallel: 2, model_parallel: 2}
checkpoint: 5
model:
  model_config:
    type: DiTDecoder
    num_layers: 2
    attention_head_dim: 30
"""
    lines = refused(text)
    starts = [line.split(": ")[:2] for line in lines]
    assert ["r.yaml:2:17", "trainer.type"] in starts and ["r.yaml:2:43", "trainer.model_name"] in starts
    assert ["r.yaml:3:1", "runner_config.stop_step"] in starts
    assert ["r.yaml:4:22", "runner_config.global_batch_size"] in starts
    assert ["r.yaml:5:3", "runner_config.stop_stepp"] in starts
    assert ["r.yaml:7:30", "lr_schedule.learning_rate"] in starts
    assert ["r.yaml:8:1", "optimiser"] in starts
    assert ["r.yaml:9:53", "parallel_config.model_parallel"] in starts
    assert ["r.yaml:10:13", "checkpoint"] in starts
    assert ["r.yaml:15:25", "model.model_config.attention_head_dim"] in starts
    missing = {key for _, key in starts if key.startswith("model.model_config.")}
    assert {f"model.model_config.{name}" for name in ("in_channels", "condition_dim", "num_attention_heads")} < missing
    numbers = [tuple(map(int, line.split(":")[1:3])) for line in lines]
    assert numbers == sorted(numbers)
    with pytest.raises(UserError, match=rf"^r\.yaml has {len(lines)} mistakes\n"):
        recipe.loads(text, "r.yaml")


@pytest.mark.parametrize(
    "change, expected",
    [
        (("seed: 1", "sede: 1"), "r.yaml:9:1: sede: unknown key; nearest name: seed; expected one of seed, run_mode"),
        (("seed: 1", "seed: 1.5"), "r.yaml:9:7: seed: given 1.5, expected an integer"),
        (("seed: 1", "seed: true"), "r.yaml:9:7: seed: given true, expected an integer"),
        (("seed: 1", "seed: null"), "r.yaml:9:7: seed: given nothing (null), expected an integer"),
        (("seed: 1", "run_mode: finetune"), "r.yaml:9:11: run_mode: given 'finetune', expected train"),
        (("seed: 1", "resume_training: 1"), "r.yaml:9:18: resume_training: given 1, expected true or false"),
        (("seed: 1", "ema: [1]"), "r.yaml:9:6: ema: given a list of 1, expected a section of keys such as decay"),
        (("seed: 1", "optimizer: {betas: [0.9]}"), "optimizer.betas: given a list of 1, expected a list of 2 numbers"),
        (("seed: 1", "optimizer: {betas: [0.9, x]}"), "optimizer.betas[1]: given 'x', expected a number"),
        (("seed: 1", "context: {mode: '0'}"), "context.mode: given '0', expected one of 0, 1"),
        (("seed: 1", "context: {mode: true}"), "context.mode: given true, expected one of 0, 1"),
        (
            ("seed: 1", "optimizer: {no_decay: [false]}"),
            "r.yaml:9:24: optimizer.no_decay[0]: given false, expected text; put it in quotes",
        ),
        (
            ("output_dir: out", "output_dir: 2024"),
            "r.yaml:2:13: output_dir: given 2024, expected text; put it in quotes",
        ),
        (("output_dir: out\n", "\n"), "output_dir: missing; expected text"),
        (("seed: 1", "output_dir: b"), "r.yaml:9:1: output_dir: given twice, first at r.yaml:2:1; keep one"),
        (
            ("type: ArGenerator", "type: ArGenerater"),
            "given 'ArGenerater', expected one of ArGenerator, DiTDecoder, VAE",
        ),
        (("    type: ArGenerator\n", ""), "model.model_config.type: missing; expected one of ArGenerator, DiTDecoder"),
        (("type: ArGenerator", "type: [1]"), "model.model_config.type: given a list of 1, expected one of ArGenerator"),
        (("type: ar_next_token", "type: {}"), "trainer.type: given a section, expected one of ar_next_token"),
        (("seed: 1", "objective: {preview_wait: 1}"), "nearest name: preview_weight"),
    ],
)
def test_each_kind_of_mistake_has_its_message(change, expected):
    text = "# the recipe\n" + recipe_text().replace("model:\n", "pretrained_model_dir: null\nseed: 1\nmodel:\n")
    assert change[0] in text
    lines = refused(text.replace(*change, 1))
    assert len(lines) == 1 and expected in lines[0]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "# nothing but a comment\n"])
def test_what_is_no_mapping(text):
    (line,) = refused(text)
    assert line.startswith("r.yaml: a recipe is a YAML mapping")


def test_broken_yaml_names_the_line():
    (line,) = refused("seed: 1\ntrainer: {type: x\nmodel: 3\n")
    assert line.startswith("r.yaml:3:6: not valid YAML: ")


def test_files_that_cannot_be_read(tmp_path):
    for path, expected in (
        (tmp_path / "no.yaml", "no such recipe file"),
        (tmp_path, "is a folder"),
        (tmp_path / "binary.yaml", "cannot be read as text"),
    ):
        if path.suffix and "binary" in path.name:
            path.write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(UserError, match=expected):
            recipe.load(path)


def test_every_key_says_what_it_means():
    tree = ast.parse(Path(schema.__file__).read_text())
    for cls in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        assert ast.get_docstring(cls)
        for field, after in zip(cls.body, [*cls.body[1:], None]):
            # What a section means stands at its own class.
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Section"):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{cls.name}.{field.target.id}"


def test_every_key_has_a_type_that_is_read():
    """A type the loader does not know would fail only when a recipe uses the key."""
    known = (int, float, str, bool)

    def check(cls):
        for name, hint in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(hint):
                check(hint)
            elif typing.get_origin(hint) is tuple:
                assert set(typing.get_args(hint)) - {Ellipsis} <= set(known), (cls, name)
            elif typing.get_origin(hint) is not typing.Literal:
                parts = [p for p in typing.get_args(hint) if p is not type(None)] or [hint]
                for part in parts:
                    if dataclasses.is_dataclass(part):
                        check(part)
                    else:
                        assert part in known, (cls, name)

    check(schema.Recipe)


def test_needs_no_mindspore_and_is_quick(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text())
    code = (
        "import sys, time; start = time.process_time(); from mindglm import recipe; recipe.load(sys.argv[1]);"
        "took = time.process_time() - start; heavy = {'mindspore', 'mindformers', 'numpy'} & set(sys.modules);"
        "print(took); assert not heavy, heavy; assert took < 1, took"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
