"""What the scheduler tells the model, and its configuration; its numbers are compared in tests/parity."""

import json

import pytest

from mindglm.errors import UserError
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder.scheduler import Scheduler, model_time
from tests.golden import REPO


def variant_json():
    return json.loads((REPO / "scheduler" / "scheduler_config.json").read_text())


def test_time_of_the_model_is_unshifted_and_counts_from_zero():
    timesteps, _ = Scheduler().tables(128, 128, 50)
    assert model_time(timesteps)[[0, 1, -1]].tolist() == [999, 979, 19]


def test_config_round_trip_and_refusal():
    given = variant_json()
    written = dit_config.scheduler_to_hf(dit_config.scheduler_from_hf(given))
    assert {**written, "_diffusers_version": given["_diffusers_version"]} == given
    with pytest.raises(UserError, match="time_shift_type"):
        dit_config.scheduler_from_hf({**given, "time_shift_type": "exponential"})
