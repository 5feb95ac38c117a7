"""What the trainer hands to an objective besides its section of the recipe."""

import dataclasses
import pathlib
import shutil

from mindglm.checkpoint.released import read_json
from mindglm.data.drawing import write_json
from mindglm.recipe import load
from mindglm.recipe.models import SchedulerConfig
from mindglm.train.objectives import build
from tests.golden import REPO

RECIPE = pathlib.Path(__file__).parents[2] / "recipes" / "nano" / "dit.yaml"
TINY = ["model.model_config.num_layers=1", "model.model_config.num_attention_heads=1"]


def test_the_decoder_learns_under_the_noise_schedule_it_will_be_sampled_with(tmp_path):
    shutil.copytree(REPO / "scheduler", tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    write_json(path, {**read_json(path), "base_image_seq_len": 64, "max_shift": 1.0})
    recipe = load(RECIPE, [*TINY, f"pretrained_model_dir={tmp_path}"])
    config = build(recipe).scheduler.config
    assert (config.base_image_seq_len, config.max_shift) == (64, 1.0)


def test_without_a_model_folder_the_released_schedule_holds():
    recipe = dataclasses.replace(load(RECIPE, TINY), pretrained_model_dir=None)
    assert build(recipe).scheduler.config == SchedulerConfig()
