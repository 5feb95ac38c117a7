"""`trainer.run` from a recipe to the exported folder, with the real glyph encoder; start weights and their errors."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from mindglm import recipe
from mindglm.checkpoint import released, store
from mindglm.errors import UserError
from mindglm.models.glyph_encoder import config as glyph_config
from mindglm.models.glyph_encoder import hf_names
from mindglm.recipe import schema
from mindglm.train import samples, trainer, weights
from tests import golden
from tests.train import fake

RECIPE = """
output_dir: {output}
pretrained_model_dir: {start}
trainer: {{type: glyph_alignment, model_name: tiny}}
runner_config: {{global_batch_size: 4, stop_step: 3}}
lr_schedule: {{learning_rate: 1.e-2}}
ema: {{decay: 0.5}}
model:
  model_config: {{type: GlyphEncoder, {structure}}}
objective: {{max_bytes: 4, bitmap_size: 6}}
checkpoint: {{save_checkpoint_steps: 10}}
validation: {{eval_step_interval: 2, eval_samples: 4}}
monitor_config: {{tensorboard: false, sample_step_interval: 2}}
"""


def loaded(output, start="null", overrides=()):
    config = released.component_config(golden.REPO, "text_encoder")
    names = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")
    structure = ", ".join(f"{name}: {config[name]}" for name in names)
    return recipe.loads(RECIPE.format(output=output, start=start, structure=structure), "tiny.yaml", overrides)


def test_run_starts_from_released_weights_and_exports_a_whole_folder(tmp_path):
    """The untouched components are copied byte for byte; the trained one holds the averaged weights."""
    trainer.run(loaded(tmp_path, golden.REPO))
    exported = tmp_path / "model"
    for path in golden.REPO.rglob("*"):
        twin = exported / path.relative_to(golden.REPO)
        assert twin.exists(), twin
        if path.is_file() and path.parent.name != "text_encoder":
            assert twin.read_bytes() == path.read_bytes(), twin
    average = store.load(tmp_path / "checkpoint").tensors["ema"]
    tensors = released.read_component(exported, "text_encoder")
    before = released.read_component(golden.REPO, "text_encoder")
    assert set(tensors) == set(before) == set(hf_names.tensors(glyph_config.from_hf(
        released.component_config(exported, "text_encoder"))))
    for name, array in tensors.items():
        assert array.tobytes() == average[name].tobytes()
        assert not np.array_equal(array, before[name]) and abs(array - before[name]).max() < 0.1, name
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 3]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_run_without_start_weights_exports_its_component_alone(tmp_path):
    trainer.run(loaded(tmp_path))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["text_encoder"]
    assert "'text_encoder' starts from random weights" in (tmp_path / "log" / "train.log").read_text()


@pytest.mark.parametrize("standing", [True, False])
def test_what_killed_exports_left_is_cleared(tmp_path, monkeypatch, standing):
    """Unfinished and replaced folders of other processes; a model that only an `.old` still holds is put back first, so
    that it is there if this export fails too."""
    (tmp_path / ".model.7.tmp" / "text_encoder").mkdir(parents=True)
    (tmp_path / ".model.8.old").mkdir()
    (tmp_path / ".model.8.old" / "config.json").write_text("replaced")
    if standing:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("standing")
    with monkeypatch.context() as patch:
        patch.setattr(released, "write_component", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(loaded(tmp_path))
    assert (tmp_path / "model" / "config.json").read_text() == ("standing" if standing else "replaced")
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left == [f".model.{os.getpid()}.tmp"]
    (tmp_path / left[0]).rename(tmp_path / ".model.9.tmp")
    trainer.run(loaded(tmp_path))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["text_encoder"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_export_on_a_full_disk_leaves_nothing_and_is_done_by_the_next_start(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(released, "write_component", refused)
        with pytest.raises(UserError, match="model could not be written .*No space left.*checkpoints are whole"):
            trainer.run(loaded(tmp_path))
    assert not [path for path in tmp_path.iterdir() if "model" in path.name]
    trainer.run(loaded(tmp_path))
    assert (tmp_path / "model" / "text_encoder").is_dir()


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_run_may_start_from_the_weights_of_another(tmp_path):
    """Fine-tuning: pretrained_model_dir names a run. Its average is where the second one starts, counters begin anew,
    and the other components are found where the first one had them."""
    trainer.run(loaded(tmp_path / "first", golden.REPO))
    average = store.load(tmp_path / "first" / "checkpoint").tensors["ema"]
    trainer.run(loaded(tmp_path / "second", tmp_path / "first", ["lr_schedule.learning_rate=1e-12"]))
    live = store.load(tmp_path / "second" / "checkpoint")
    assert live.step == 3 and live.tensors["model"].keys() == average.keys()
    for name, array in average.items():
        np.testing.assert_allclose(live.tensors["model"][name], array, atol=1e-9)
    assert (tmp_path / "second" / "model" / "vae" / "config.json").exists()
    assert f"come from {tmp_path / 'first'}" in (tmp_path / "second" / "log" / "train.log").read_text()


@pytest.mark.parametrize("part", ["", "checkpoint", "checkpoint/iteration_00000003"])
def test_a_run_does_not_begin_from_itself(tmp_path, part):
    """It would train to its end and then find nothing to export with."""
    trainer.run(loaded(tmp_path / "run"))
    with pytest.raises(UserError, match="is this run itself"):
        trainer.run(loaded(tmp_path / "run", tmp_path / "run" / part, ["runner_config.stop_step=6"]))
    assert store.steps(tmp_path / "run" / "checkpoint") == [3]


def test_a_resumed_run_needs_no_start_weights(tmp_path):
    """They may be gone: all weights are in the checkpoint."""
    start = tmp_path / "start"
    shutil.copytree(golden.REPO, start)
    trainer.run(loaded(tmp_path / "run", start))
    shutil.rmtree(start / "text_encoder")
    trainer.run(loaded(tmp_path / "run", start, ["runner_config.stop_step=5"]))
    assert store.load(tmp_path / "run" / "checkpoint").step == 5
    said = (tmp_path / "run" / "log" / "train.log").read_text()
    assert said.count("come from") == 1 and "random weights" not in said
    trainer.run(loaded(tmp_path / "run", start, ["runner_config.stop_step=4"]))
    assert "nothing to train: step 5 is done" in (tmp_path / "run" / "log" / "train.log").read_text()


def test_forbidden_changes_are_told_all_at_once_though_start_weights_would_not_fit_either(tmp_path):
    trainer.run(loaded(tmp_path, golden.REPO))
    with pytest.raises(UserError, match="cannot continue the checkpoint") as refused:
        trainer.run(loaded(tmp_path, golden.REPO, ["model.model_config.d_ff=40", "model.frozen=[encoder.block.7.]"]))
    assert "model.frozen: [] ->" in str(refused.value) and "model.model_config.d_ff: 72 -> 40" in str(refused.value)


def test_number_of_processes_must_be_that_of_the_recipe(tmp_path):
    with pytest.raises(UserError, match="data_parallel 2 x .* 2 processes, but 1 were started.*launch/train_node.sh"):
        trainer.run(loaded(tmp_path, overrides=["parallel_config.data_parallel=2"]))


def test_device_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="device_target is Ascend, but this machine has no such device"):
        trainer.run(loaded(tmp_path, overrides=["context.device_target=Ascend"]))


def start(tmp_path, tensors, shapes, fresh=()):
    """weights.load_start of the fake model from a folder that holds `tensors`."""
    released.write_component(tmp_path, "text_encoder", {}, tensors, "float32")
    objective = fake.Objective()
    said = weights.load_start(objective, str(tmp_path), fresh, "text_encoder", shapes)
    return objective, said


def tensors_of_fake():
    return {name: p.asnumpy().copy() + 1 for name, p in fake.Objective().component_tensors().items()}


def test_start_weights_by_name_with_a_fresh_part(tmp_path):
    tensors = tensors_of_fake()
    shapes = {name: array.shape for name, array in tensors.items()} | {"elsewhere": (2,)}
    tensors["elsewhere"] = np.zeros(2, np.float32)  # of the same component, not of this objective's model
    del tensors["down"]
    objective, said = start(tmp_path, tensors, shapes, fresh=("down",))
    assert "3 of 4 tensors" in said
    found = objective.component_tensors()
    assert np.array_equal(found["up"].asnumpy(), tensors["up"])
    assert np.array_equal(found["down"].asnumpy(), fake.Objective().model.down.asnumpy())


def test_checkpoint_of_another_model_is_refused_with_all_faults_at_once(tmp_path):
    tensors = tensors_of_fake()
    shapes = {name: array.shape for name, array in tensors.items()}
    tensors["up"] = tensors["up"][:, :3]
    tensors["strange.weight"] = tensors.pop("norm_scale")
    with pytest.raises(UserError) as refused:
        start(tmp_path, tensors, shapes)
    text = str(refused.value)
    assert "checkpoint of another model" in text
    assert "1 missing: norm_scale" in text and "1 unexpected: strange.weight" in text
    assert "1 of another shape: up is [8, 3], expected [8, 6]" in text


def test_folder_without_the_component_or_without_any(tmp_path):
    objective = fake.Objective()
    with pytest.raises(UserError, match="holds no component"):
        weights.load_start(objective, str(tmp_path), (), "transformer", {})
    released.write_component(tmp_path, "vae", {}, {"x": np.zeros(1, np.float32)}, "float32")
    said = weights.load_start(objective, str(tmp_path), (), "transformer", {})
    assert "has no 'transformer': it starts from random weights" in said


def test_picture_of_codes_and_of_nothing(tmp_path):
    """Objectives without a picture give None; a picture is written as PNG."""
    settings = fake.make_recipe(tmp_path, trainer=schema.TrainerSection("glyph_alignment", "fake"))
    assert samples.picture(fake.Objective(), settings, fake.Dataset()) is None
    path = samples.write(tmp_path / "samples" / "step_000001.png", np.zeros((4, 6, 3), np.uint8))
    assert path.read_bytes().startswith(b"\x89PNG")
