"""convert of a training checkpoint: EMA or live weights of what was trained, the rest from where the run began."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from ckpt_tools import convert
from mindglm import recipe
from mindglm.checkpoint import released, seal, store
from mindglm.checkpoint.components import COMPONENTS
from mindglm.models.ar_generator import hf_names as ar_names
from tests.ckpt_tools.folders import contents
from tests.golden import REPO

DIT, AR = "transformer", "vision_language_encoder"


def checkpoint(run, component, names=None, kind="flow_matching", model_type="DiTDecoder", ema=True, begin=REPO,
               extra=()):
    """A run's folder with checkpoints of steps 3 and 5: live weights 1 + the released ones, EMA 2 + those."""
    tensors = released.read_component(REPO, component, names)
    live = {name: array + np.float32(1) for name, array in tensors.items()}
    live.update({name: np.zeros(3, np.float32) for name in extra})
    kinds = {"model": live, "opt": {"adam_m." + name: array for name, array in tensors.items()}}
    if ema:
        kinds["ema"] = {name: array + np.float32(2) for name, array in tensors.items()}
    structure = recipe_text(component, model_type, kind, begin)
    for step in (3, 5):
        store.save(run / "checkpoint", step, kinds, {"step": step}, structure, keep=2)
    return tensors


def recipe_text(component, model_type, kind, begin):
    config = COMPONENTS[component].config.from_hf(released.component_config(REPO, component))
    lines = {"seed": 1, "output_dir": "out", "pretrained_model_dir": None if begin is None else str(begin),
             "trainer": {"type": kind, "model_name": "x"}, "runner_config": {"global_batch_size": 2, "stop_step": 9},
             "lr_schedule": {"learning_rate": 1e-3}, "checkpoint": {"save_checkpoint_steps": 1},
             "model": {"model_config": {"type": model_type, **dataclasses.asdict(config)}},
             "train_dataset": {"dataset_dir": "data"}}
    return json.dumps(lines)  # JSON is YAML


def run_tool(*arguments):
    return convert.main(["--from", "mindglm", "--to", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("weights, added", [("auto", 2), ("ema", 2), ("live", 1)])
def test_weights_are_chosen_and_the_rest_is_copied(tmp_path, weights, added):
    before = checkpoint(tmp_path / "run", DIT)
    assert run_tool("hf", tmp_path / "run", tmp_path / "out", "--weights", weights) == 0
    after = released.read_component_raw(tmp_path / "out", DIT)
    for name, array in before.items():
        expected = released.to_bfloat16(array + np.float32(added))
        assert np.array_equal(after[name], expected), name
    ours, theirs = contents(tmp_path / "out"), contents(REPO)
    for name in theirs:
        if not name.startswith(f"{DIT}/"):
            assert ours[name] == theirs[name], name
    assert {name for name in ours if not name.startswith(f"{DIT}/")} == {
        name for name in theirs if not name.startswith(f"{DIT}/")}


def test_it_is_what_the_run_itself_exports(tmp_path):
    """Same folder, byte for byte, as mindglm.train.export of the same weights."""
    from mindglm.train import export

    before = checkpoint(tmp_path / "run", DIT)
    loaded = recipe.loads(recipe_text(DIT, "DiTDecoder", "flow_matching", REPO),
                          overrides=[f"output_dir={tmp_path / 'run'}"])
    exported = export.write(loaded, object(), None, {name: array + np.float32(2) for name, array in before.items()})
    assert run_tool("hf", tmp_path / "run", tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(exported)


def test_an_export_carries_no_list_of_another_folders_weights(tmp_path):
    """A run may begin from a mindglm folder; its seal is not copied into what the run exports."""
    from mindglm.train import export

    assert convert.main(["--from", "hf", "--to", "mindglm", str(REPO), str(tmp_path / "m")]) == 0
    loaded = recipe.loads(recipe_text(DIT, "DiTDecoder", "flow_matching", tmp_path / "m"),
                          overrides=[f"output_dir={tmp_path / 'run'}"])
    exported = export.write(loaded, object(), None, released.read_component(REPO, DIT))
    assert not (exported / seal.NAME).exists() and (exported / "model_index.json").exists()


def test_step_iteration_folder_and_sealed_target(tmp_path):
    checkpoint(tmp_path / "run", DIT)
    assert run_tool("mindglm", tmp_path / "run", tmp_path / "a", "--step", 3) == 0
    assert run_tool("mindglm", tmp_path / "run" / "checkpoint" / "iteration_00000005", tmp_path / "b") == 0
    assert run_tool("hf", tmp_path / "run" / "checkpoint", tmp_path / "c", "--dtype", "float32") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and (tmp_path / "a" / seal.NAME).exists()
    assert {code for code, _ in released.component_header(tmp_path / "c", DIT).values()} == {"F32"}
    assert run_tool("hf", tmp_path / "a", tmp_path / "d") == 0  # the sealed folder converts back
    assert run_tool("hf", tmp_path / "run", tmp_path / "e", "--step", 4) == 2


def test_a_run_that_trains_a_part_takes_the_other_part_from_its_base(tmp_path, capsys):
    config = COMPONENTS[AR].config.from_hf(released.component_config(REPO, AR))
    language = list(ar_names.language_tensors(config))
    before = checkpoint(tmp_path / "run", AR, language, "ar_next_token", "ArGenerator", ema=False,
                        extra=["training_only.pixel_head.weight"])
    assert run_tool("hf", tmp_path / "run", tmp_path / "out") == 0
    after, given = (released.read_component_raw(root, AR) for root in (tmp_path / "out", REPO))
    assert set(after) == set(given)
    for name in after:
        expected = released.to_bfloat16(before[name] + np.float32(1)) if name in before else given[name]
        assert np.array_equal(after[name], expected), name
    assert (tmp_path / "out" / AR / "generation_config.json").exists()
    assert run_tool("hf", tmp_path / "run", tmp_path / "bad", "--weights", "ema") == 2
    assert "no EMA weights" in capsys.readouterr().err
    shutil.copytree(REPO / "vae", tmp_path / "base" / "vae")
    assert run_tool("hf", tmp_path / "run", tmp_path / "bad", "--base", tmp_path / "base") == 2
    assert "missing: model.visual.patch_embed.proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_without_a_base_the_component_alone_is_written(tmp_path, capsys):
    checkpoint(tmp_path / "run", DIT, begin=None)
    assert run_tool("hf", tmp_path / "run", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {DIT}
    checkpoint(tmp_path / "lost", DIT, begin="nowhere/at/all")
    assert run_tool("hf", tmp_path / "lost", tmp_path / "out2") == 2
    assert "--base" in capsys.readouterr().err


def test_damaged_checkpoint_and_vae_are_refused(tmp_path, capsys):
    checkpoint(tmp_path / "run", DIT)
    path = next((tmp_path / "run" / "checkpoint" / "iteration_00000005").glob("*-ema-*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run_tool("hf", tmp_path / "run", tmp_path / "out") == 2
    assert "is damaged" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run_tool("hf", tmp_path / "run", tmp_path / "out", "--weights", "live") == 0
    checkpoint(tmp_path / "vae", "vae", kind="vae_reconstruction", model_type="VAE")
    assert run_tool("hf", tmp_path / "vae", tmp_path / "out2") == 2
    assert "latent statistics" in capsys.readouterr().err
