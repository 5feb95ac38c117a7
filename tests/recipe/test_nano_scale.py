"""Every shipped recipe runs: from its file through the trainer to the folder it exports, on the tiny model."""

import json
import pathlib

import numpy as np
import pytest

from mindglm import recipe
from mindglm.checkpoint import released
from mindglm.data import prepare
from mindglm.train import trainer
from tests.data.pictures import picture, write_captions
from tests.golden import REPO
from tests.parallel.job import Job
from tests.recipe.shipped import BATCH, RECIPES, ROOT, SIZES, STEPS, nano_scale, piped, relative

BY_NAME = {relative(path).removeprefix("recipes/"): path for path in RECIPES}
# Those that start from what another one wrote come after it.
CHAINS = [
    ["glm_image/ar_9b_pretrain_256.yaml", "glm_image/ar_9b_pretrain_512.yaml", "glm_image/ar_9b_pretrain_mixed.yaml",
     "glm_image/ar_9b_sft.yaml"],
    ["glm_image/dit_7b_pretrain_256.yaml", "glm_image/dit_7b_pretrain_512.yaml", "glm_image/dit_7b_pretrain_1024.yaml",
     "glm_image/dit_7b_pretrain_mixed.yaml", "glm_image/dit_7b_sft.yaml"],
    ["nano/vae.yaml", "nano/tokenizer.yaml", "nano/glyph.yaml"],
    ["nano/ar.yaml", "nano/dit.yaml"],
]
FROM_RELEASED = ["glm_image/ar_9b_from_released.yaml", "glm_image/dit_7b_from_released.yaml"]
STAGES = [name for name in BY_NAME if name.count("/") == 1 and name.startswith("glm_image/")]
VARIANTS = [name for name in BY_NAME if name.count("/") == 2]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with two datasets of three sizes: encoded by the tiny encoders, and pixels."""
    folder = tmp_path_factory.mktemp("recipes")
    rows, shapes = [], [tuple(map(int, size.split("x"))) for size in SIZES]
    for i in range(12):
        width, height = shapes[i % len(shapes)]
        (folder / "pictures").mkdir(exist_ok=True)
        picture(i, height, width).save(folder / "pictures" / f"{i}.png")
        split = "held_out" if i < 3 else "train"
        rows.append({"file": f"{i}.png", "caption": f'a sign that says "W{i}"', "split": split})
    captions = write_captions(folder / "pictures", rows)
    sizes = [(height, width) for width, height in shapes]
    for name, model in (("dataset", REPO), ("pixels", None)):
        prepare.run(folder / "pictures", captions, model, folder / name, sizes, pixels_only=model is None)
    return folder


def run(name, work):
    """Train by the recipe; its metrics lines."""
    path = BY_NAME[name]
    overrides = nano_scale(path, work)
    loaded = recipe.load(path, overrides)
    trainer.run(loaded)
    return check_run(loaded)


def check_run(loaded):
    output = pathlib.Path(loaded.output_dir)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(np.isfinite(line["loss"]) and line["samples"] == BATCH * line["step"] for line in steps)
    assert sum("validation_loss" in line for line in lines) == STEPS
    assert (output / "checkpoint" / "latest_checkpointed_iteration.txt").read_text().strip() == str(STEPS)
    component = {"ArGenerator": "vision_language_encoder", "DiTDecoder": "transformer", "VAE": "vae",
                 "GlyphEncoder": "text_encoder"}[loaded.model_type]
    assert (output / "model" / component / "config.json").is_file()
    return steps


def test_released_weights_go_through_both_recipes_into_one_folder(work):
    """AR, then the DiT on what AR wrote: the last folder is a whole model."""
    for name in FROM_RELEASED:
        run(name, work)
    whole = work / recipe.load(BY_NAME[FROM_RELEASED[1]]).output_dir / "model"
    assert {path.name for path in whole.iterdir()} == {path.name for path in REPO.iterdir()}
    for component in ("vision_language_encoder", "transformer"):
        before, after = released.read_component(REPO, component), released.read_component(whole, component)
        assert set(before) == set(after)
        assert any(not np.array_equal(before[name], after[name]) for name in before), component


def test_a_mixed_stage_with_recomputation_runs_on_several_sizes(work, tmp_path):
    path = BY_NAME["glm_image/dit_7b_pretrain_mixed.yaml"]
    overrides = [*nano_scale(path, work), f"pretrained_model_dir={REPO}", f"output_dir={tmp_path}"]
    loaded = recipe.load(path, overrides)
    assert loaded.recompute_config.recompute and loaded.train_dataset.buckets == SIZES
    trainer.run(loaded)
    check_run(loaded)


def test_chains_hold_all_recipes():
    named = [name for chain in CHAINS for name in chain] + FROM_RELEASED
    assert sorted([*named, *VARIANTS]) == sorted(BY_NAME)


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0])
def test_every_recipe_runs_after_the_one_it_starts_from(work, chain):
    for name in chain:
        run(name, work)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_node_count_runs(work, tmp_path, name):
    path = BY_NAME[name]
    start = [] if recipe.load(path).pretrained_model_dir is None else [f"pretrained_model_dir={REPO}"]
    loaded = recipe.load(path, [*nano_scale(path, work), f"output_dir={tmp_path}", *start])
    trainer.run(loaded)
    check_run(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_runs_as_a_pipeline_of_two_processes(work, tmp_path, name):
    overrides = [*piped(BY_NAME[name], work), f"output_dir={tmp_path / 'out'}"]
    loaded = recipe.load(BY_NAME[name], overrides)
    arguments = ["-m", "mindglm", "train", str(BY_NAME[name]), *overrides]
    with Job(2, arguments, tmp_path / "logs", PYTHONPATH=str(ROOT)) as job:
        assert job.wait() == [0, 0], job.logs()
    check_run(loaded)
