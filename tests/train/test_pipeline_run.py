"""`mindglm train` with a pipeline: a recipe and a prepared dataset in, checkpoints, pictures and a whole model out."""

import json

import numpy as np
import pytest
from PIL import Image

from mindglm import recipe as recipes
from mindglm.checkpoint import released, store
from mindglm.data import prepare
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.dit_decoder import config as dit_config
from mindglm.recipe import schema
from mindglm.train import trainer
from tests.data.pictures import picture_folder
from tests.golden import REPO, VARIANTS
from tests.parallel.job import Job
from tests.train import fake

STEPS, BATCH, MICRO = 3, 8, 2


def recipe_file(folder, task, repo):
    """A recipe for one process; the layout comes as key=value behind it.

    Its dataset: ten pictures through the encoders of the tiny released folder `repo`, three of them held out.
    """
    dataset = folder.parent / "data"
    prepare.run(picture_folder(folder.parent / "images", 10, 3), None, repo, dataset, sizes=[(64, 64)])
    component, options, kind = {
        "ar": ("vision_language_encoder", schema.ArNextTokenOptions(pad_to_multiple=16), "ar_next_token"),
        "dit": ("transformer", schema.FlowMatchingOptions(), "flow_matching")}[task]
    config = {"ar": ar_config, "dit": dit_config}[task].from_hf(released.component_config(repo, component))
    settings = fake.make_recipe(
        folder, steps=STEPS, batch=BATCH, accumulation=BATCH // MICRO, ema=0.5, save=2,
        lr_schedule=schema.LrScheduleSection(learning_rate=0.002), optimizer=schema.OptimizerSection(eps=1e-6),
        trainer=schema.TrainerSection(kind, "tiny"), model=schema.ModelSection(config), objective=options,
        train_dataset=schema.DatasetSection(str(dataset)),
        validation=schema.ValidationSection(eval_step_interval=2, eval_samples=3),
        monitor_config=schema.MonitorSection(tensorboard=False, sample_step_interval=2))
    path = folder / "recipe.yaml"
    folder.mkdir(parents=True)
    path.write_text(recipes.to_yaml(settings).replace("pretrained_model_dir: null", f"pretrained_model_dir: {repo}"))
    return path


def check_same_run(one, many, repo, component, rtol=1e-5):
    """Curves, sample picture, exported tensors and untouched components."""
    lines = [[json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
             for folder in (one, many)]
    for key in ("loss", "grad_norm", "validation_loss"):
        ours, theirs = ([line[key] for line in found if key in line] for found in lines)
        assert len(ours) == len(theirs) == {"validation_loss": 1}.get(key, STEPS)
        np.testing.assert_allclose(theirs, ours, rtol=rtol, err_msg=key)
    pictures = [np.asarray(Image.open(folder / "samples" / "step_000002.png")).astype(int) for folder in (one, many)]
    assert pictures[0].shape == pictures[1].shape and pictures[0].std() > 1
    assert (abs(pictures[0] - pictures[1]) <= 1).mean() > 0.99
    assert store.steps(many / "checkpoint") == store.steps(one / "checkpoint") == [2, 3]
    before, *exports = (released.read_component(folder, component) for folder in (repo, one / "model", many / "model"))
    assert set(before) == set(exports[0]) == set(exports[1])
    moved = [name for name in before if not np.array_equal(before[name], exports[0][name])]
    assert len(moved) > len(before) / 3
    for name, values in exports[0].items():
        np.testing.assert_allclose(exports[1][name], values, rtol=1e-2, atol=1e-4, err_msg=name)  # bfloat16 files
    for path in repo.rglob("*"):
        twin = many / "model" / path.relative_to(repo)
        if path.is_file() and component not in path.parts:
            assert twin.read_bytes() == path.read_bytes(), twin


def run_both(tmp_path, task, layout, workers, repo=REPO):
    """One process here, `workers` processes by the command line; both from the same recipe."""
    path = recipe_file(tmp_path / "one", task, repo)
    given = [str(path), f"output_dir={tmp_path / 'many'}", "runner_config.gradient_accumulation_steps=1", *layout]
    with Job(workers, ["-m", "mindglm", "train", *given], tmp_path / "logs") as job:
        trainer.run(recipes.load(path))
        assert job.wait(400) == [0] * workers, job.logs()
        table = job.logs()
    assert "stage boundaries lie between two hosts" in table and "tensors of" in table
    component = {"ar": "vision_language_encoder", "dit": "transformer"}[task]
    check_same_run(tmp_path / "one", tmp_path / "many", repo, component)


def test_the_decoder_over_two_stages(tmp_path):
    run_both(tmp_path, "dit", ["parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=4"], 2)


@pytest.mark.slow
def test_the_generator_over_two_stages_and_two_shares_of_the_data(tmp_path):
    """ZeRO-1 and recomputation besides."""
    layout = ["parallel_config.pipeline_stage=2", "parallel_config.data_parallel=2", "recompute_config.recompute=true",
              "parallel_config.micro_batch_num=2", "parallel_config.optimizer_shard=true"]
    run_both(tmp_path, "ar", layout, 4)


@pytest.mark.slow
def test_the_decoder_over_two_chunks_a_stage(tmp_path):
    layout = ["parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=4",
              "parallel_config.pipeline_schedule=interleaved", "parallel_config.pipeline_chunks=2"]
    run_both(tmp_path, "dit", layout, 2, VARIANTS["deep"] / "repo")
