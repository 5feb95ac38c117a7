"""The flow-matching scheduler against FlowMatchEulerDiscreteScheduler (fixture family `scheduler`)."""

import json

import numpy as np
import pytest

from mindglm.errors import UserError
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder.scheduler import Scheduler, model_time
from mindglm.recipe.models import SchedulerConfig
from tests.golden import REPO, fixture, rel_error, side_car


def variant_json():
    return json.loads((REPO / "scheduler" / "scheduler_config.json").read_text())


@pytest.mark.parametrize("case", side_car("scheduler")["cases"], ids=lambda case: case["key"])
def test_tables(case):
    golden = fixture("scheduler")
    config = SchedulerConfig() if case["key"].startswith("release") else dit_config.scheduler_from_hf(variant_json())
    height, width, steps = map(int, case["key"].split(".")[1].split("x"))
    scheduler = Scheduler(config)
    assert scheduler.mu(case["seq"]) == pytest.approx(case["mu"], rel=1e-12)
    timesteps, sigmas = scheduler.tables(height // 8, width // 8, steps)
    np.testing.assert_array_equal(timesteps, golden[case["key"] + ".timesteps"])
    assert sigmas.dtype == np.float32 and sigmas[-1] == 0
    assert rel_error(sigmas, golden[case["key"] + ".sigmas"]) < 1e-6


def test_steps():
    golden = fixture("scheduler")
    scheduler = Scheduler()
    timesteps, sigmas = scheduler.tables(64, 64, 4)
    assert rel_error(sigmas, golden["step.sigmas"]) < 1e-6
    np.testing.assert_array_equal(timesteps, golden["step.timesteps"])
    x = golden["step.x0"]
    for i in range(4):
        x = scheduler.step(x, golden[f"step.v{i}"], i)
        assert rel_error(x, golden[f"step.x{i + 1}"]) < 1e-6


def test_time_of_the_model_is_unshifted_and_counts_from_zero():
    timesteps, _ = Scheduler().tables(128, 128, 50)
    assert model_time(timesteps)[[0, 1, -1]].tolist() == [999, 979, 19]


def test_training_sigma_is_the_fixture_s():
    golden, mu = fixture("train_dit"), side_car("train_dit")["t2i.mu"]
    scheduler = Scheduler(dit_config.scheduler_from_hf(variant_json()))
    assert scheduler.mu(24) == pytest.approx(mu)
    assert rel_error(scheduler.sigma(golden["t2i.t"], 24), golden["t2i.sigma"]) < 1e-6


def test_config_round_trip_and_refusal():
    given = variant_json()
    written = dit_config.scheduler_to_hf(dit_config.scheduler_from_hf(given))
    assert {**written, "_diffusers_version": given["_diffusers_version"]} == given
    with pytest.raises(UserError, match="time_shift_type"):
        dit_config.scheduler_from_hf({**given, "time_shift_type": "exponential"})
