"""A step that is not finite, kept in a capsule and done again: data, numerics or transient."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

from mindglm import order, recipe
from mindglm.cli.main import main
from mindglm.errors import UserError
from mindglm.recipe import schema
from mindglm.train import capsule, replay
from mindglm.train.objectives import build
from mindglm.train.trainer import run
from mindglm.train.weights import all_parameters
from tests.parallel import same_run_worker as runs
from tests.parallel.job import ROOT, Job
from tests.train import fake
from tests.train.test_run import loaded

BAD = 13


class Spoilt(runs.Samples):
    """DiT samples, of which one has latents of another size of number."""

    def __init__(self, factor: float = 1.0):
        super().__init__("dit", 16)
        self._factor = factor

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {**sample, "latents": sample["latents"] * np.float32(self._factor)} if i == BAD else sample


def failing_run(folder, dataset, prepare=lambda trainer: None, accumulation=2):
    """A run that stops at its first step that is not finite; returns the capsule."""
    from mindglm.train.loop import Trainer

    settings = dataclasses.replace(
        runs.recipe_of({"task": "dit", "steps": 8, "micro": 8 // accumulation}, folder),
        runner_wrapper=schema.RunnerWrapperSection(max_skipped_steps=0), validation=schema.ValidationSection(),
        train_dataset=schema.DatasetSection("made up in this test"))
    trainer = Trainer(settings, recipe.to_yaml(settings), build(settings), dataset)
    prepare(trainer)
    with pytest.raises(UserError, match="max_skipped_steps is 0.*mindglm replay .*capsules/step_0000000") as stopped:
        trainer.fit()
    step = trainer.counters.step
    assert f"step {step}:" in str(stopped.value)
    return capsule.read(trainer.output_dir / "capsules" / f"step_{step:08d}")


@pytest.mark.parametrize("factor, seen", [(np.nan, "the dataset holds numbers that are not finite in"),
                                          (1e25, "their input values reach")], ids=["nan", "outlier"])
def test_data(tmp_path, factor, seen):
    """One sample with a NaN, or far outside the others: named. The capsule says what the step read and drew."""
    data = Spoilt(factor)
    kept = failing_run(tmp_path, data)
    assert kept.about["samples"] == order.batch_ids(0, kept.step, 8, 16).tolist() and BAD in kept.about["samples"]
    assert kept.about["purposes"] == ["code_corruption", "condition_dropout", "noise", "time"]
    assert kept.about["seed"] == 0 and kept.about["skipped_in_row"] == 1 and len(kept.inputs) == 2
    verdict = replay.judge(kept, data)
    assert verdict.kind == "data", verdict
    text = "\n".join(verdict.reasons)
    assert seen in text and f"{BAD} (number {BAD})" in text and "gives other inputs now" not in text


def test_data_that_was_repaired_since_or_is_gone(tmp_path):
    kept = failing_run(tmp_path, Spoilt(np.nan))
    repaired = replay.judge(kept, Spoilt())
    assert repaired.kind == "data"
    assert "gives other inputs now" in repaired.reasons[1] and "repaired since" in repaired.reasons[-1]
    gone = replay.judge(kept)
    assert gone.kind == "data" and "not here" in gone.reasons[-1]


class Torn(Spoilt):
    """The dataset was prepared again at another size."""

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return {**sample, "latents": np.tile(sample["latents"], (1, 2, 1))}


@pytest.mark.parametrize("dataset", [Spoilt(), Torn()], ids=["repaired", "another size"])
def test_samples_that_were_not_in_the_step_do_not_clear_the_data(tmp_path, dataset):
    kept = failing_run(tmp_path, Spoilt(1e25))
    text = "\n".join(replay.judge(kept, dataset).reasons)
    assert "does not hang on the data" not in text and "reach 2.96e+25" in text


class Fewer(Spoilt):
    """The dataset was prepared again and has lost samples, as ShardDataset tells of it."""

    def __getitem__(self, i):
        if i > 4:
            raise IndexError(f"sample {i} of 5")
        return super().__getitem__(i)


def test_data_that_were_prepared_anew_do_not_keep_the_step_from_being_done_again(tmp_path):
    kept = failing_run(tmp_path, Spoilt(np.nan))
    verdict = replay.judge(kept, Fewer(np.nan))
    assert verdict.kind == "data" and "not that of the run (IndexError: sample" in verdict.reasons[1]


def test_a_capsule_that_lost_inputs_is_refused(tmp_path):
    """It would be judged by half of the step."""
    kept = failing_run(tmp_path, Spoilt(np.nan))
    (kept.folder / "inputs-0000.safetensors").unlink()
    with pytest.raises(UserError, match="inputs-0000.safetensors: no such file"):
        capsule.read(kept.folder)
    for content, told in (("[]", "version None"), ('{"version": 1, "loss": 1.0}', "lacks .*'samples', 'keys'")):
        (kept.folder / "capsule.json").write_text(content)
        with pytest.raises(UserError, match=told):
            capsule.read(kept.folder)


def blow_up(trainer):
    for parameter in trainer.objective.model.get_parameters():
        parameter.copy_(Tensor(parameter.asnumpy() * np.float32(1e20)))


def test_numerics(tmp_path):
    """Weights that overflow on every sample: the layer where it begins is named, norms by tensor are kept."""
    kept = failing_run(tmp_path, Spoilt(), blow_up)
    verdict = replay.judge(kept, Spoilt())
    text = "\n".join(verdict.reasons)
    assert verdict.kind == "numerics" and "all of the 8 samples fail alone" in text
    assert "is the first that is not finite" in text
    norms = kept.about["norms"]
    assert norms.keys() == {p.name for p in build(recipe.loads(kept.recipe_text)).model.get_parameters()}
    assert max(norm["weight"] for norm in norms.values()) > 1e20
    assert any(norm["not_finite"] for norm in norms.values())


def faulty_device(trainer):
    """Computes the third step's loss wrongly, once."""
    work = trainer._step._work

    def wrong(micro_batches, sums):
        pairs = work(micro_batches, sums)
        return [(np.nan, weight) for _, weight in pairs] if trainer.counters.step == 2 else pairs

    trainer._step._work = wrong


def test_transient(tmp_path):
    kept = failing_run(tmp_path, Spoilt(), faulty_device)
    assert kept.step == 2 and kept.about["loss"] == "nan"
    verdict = replay.judge(kept, Spoilt())
    assert verdict.kind == "transient" and "inputs and weights are sound" in verdict.reasons[-1]


def test_frozen_weights_in_bfloat16_are_read_as_numbers(tmp_path):
    """A run on Ascend stores what does not train as raw bfloat16; one tensor is not finite and is named."""
    from mindglm.checkpoint import store
    from mindglm.checkpoint.tensors import to_bfloat16, to_float32

    settings = loaded(tmp_path / "run")
    weights = {name: p.asnumpy().copy() for name, p in all_parameters(build(settings)).items()}
    frozen, wild, *_ = sorted(name for name, array in weights.items() if array.ndim == 2)
    weights[wild][0, 0] = np.inf
    stored = {**weights, frozen: to_bfloat16(weights[frozen]), wild: to_bfloat16(weights[wild])}
    store.save(tmp_path / "weights", 1, {"model": stored}, {}, recipe.to_yaml(settings))
    bench = replay.Bench(capsule.Capsule(tmp_path, {}, recipe.to_yaml(settings), []))
    held = all_parameters(bench.objective)
    expected = to_float32(stored[frozen])
    assert str(held[frozen].dtype) == "Float32" and held[frozen].asnumpy().tobytes() == expected.tobytes()
    assert bench.not_finite == [wild]


def test_second_capsule_of_a_step_takes_the_place_of_the_first(tmp_path):
    """Another start, which fails at the same step: weights, inputs and ranks' files of the first are gone."""
    from mindglm.checkpoint import store

    for seed in (0, 1):
        objective = fake.Objective(seed)
        objective.bad_samples = set(range(40))
        trainer = fake.make_trainer(fake.make_recipe(
            tmp_path, steps=4, runner_wrapper=schema.RunnerWrapperSection(max_skipped_steps=0)), objective)
        with pytest.raises(UserError, match="is kept in"):
            trainer.fit()
        folder = tmp_path / "capsules" / "step_00000001"
        kept = store.load(folder / "weights").tensors["model"]
        assert {name: array.tobytes() for name, array in kept.items()} == {
            name: array.tobytes() for name, array in fake.weights(trainer).items()}
        assert len(capsule.read(folder).inputs) == 1
        (folder / "inputs-0001.safetensors").write_bytes((folder / "inputs-0000.safetensors").read_bytes())


def test_command_on_a_run_of_the_command(tmp_path, monkeypatch, capsys):
    """mindglm train with start weights that overflow, then mindglm replay of what it leaves."""
    from mindglm.checkpoint import released
    from tests import golden

    tensors = released.read_component(golden.REPO, "text_encoder")
    start = tmp_path / "start"
    released.write_component(start, "text_encoder", released.component_config(golden.REPO, "text_encoder"),
                             {name: array * np.float32(1e20) for name, array in tensors.items()}, "float32")
    with pytest.raises(UserError, match="mindglm replay"):
        run(loaded(tmp_path / "run", start, ["runner_wrapper.max_skipped_steps=1"]))
    folder = tmp_path / "run" / "capsules" / "step_00000002"
    assert json.loads((folder / "capsule.json").read_text())["skipped_in_row"] == 2
    monkeypatch.setenv("MINDGLM_OPS", "cpu")  # as the command sets it, undone afterwards
    assert main(["replay", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "step 2, numerics" in told and "all of the 4 samples fail alone" in told
    assert main(["replay", str(tmp_path)]) == 2
    assert "no capsule of a step" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"dp": 2, "zero": True}, {"pp": 2}], ids=["zero", "pipeline"])
def test_capsule_of_two_processes_is_that_of_one(tmp_path, layout):
    """Same samples, keys and inputs, norms of every tensor of the model; replayed alone."""
    from mindglm.checkpoint import store

    found = []
    for world, case in ((1, {"task": "dit", "folder": "one"}), (2, {"task": "dit", "folder": "two", **layout})):
        worker = [str(ROOT / "tests/train/capsule_worker.py"), str(tmp_path), json.dumps(case)]
        if world == 1:
            subprocess.run([sys.executable, *worker], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        else:
            with Job(world, worker, tmp_path / "logs", MS_NODE_TIMEOUT="120") as job:
                assert job.wait(300) == [0] * world, job.logs()
        found.append(capsule.read(tmp_path / case["folder"] / "capsules" / "step_00000001"))
    one, two = found
    for key in ("samples", "keys", "purposes", "step", "seed"):
        assert one.about[key] == two.about[key], key
    assert one.about["norms"].keys() == two.about["norms"].keys()
    for name, norms in one.about["norms"].items():
        assert norms["weight"] == pytest.approx(two.about["norms"][name]["weight"], rel=1e-6), name
    assert [[a.tobytes() for a in batch] for batch in one.inputs] == [[a.tobytes() for a in b] for b in two.inputs]
    weights = [store.load(kept.folder / "weights").tensors["model"] for kept in found]
    assert {n: a.tobytes() for n, a in weights[0].items()} == {n: a.tobytes() for n, a in weights[1].items()}
    assert replay.judge(two, runs.Samples("dit")).kind == "numerics"
