"""Promise 3 with real models: any layout of processes trains as one process does. The whole matrix: the slow tests."""

import json

import numpy as np
import pytest

from tests.parallel import same_run_worker as runs
from tests.parallel.job import ROOT, Job

WORKER = str(ROOT / "tests/parallel/same_run_worker.py")


def run(folder, world, *cases):
    """Train the cases in one job of `world` processes."""
    with Job(world, [WORKER, str(folder), json.dumps(cases)], folder / f"logs_{world}_{len(list(folder.iterdir()))}",
             MS_NODE_TIMEOUT="120") as job:
        assert job.wait(1500) == [0] * world, job.logs()


def close(ours, theirs, what):
    """Loss, gradient norm and validation loss to 1e-5 at every step."""
    for key in ("loss", "grad_norm", "validation_loss"):
        assert len(ours[key]) == len(theirs[key]) > 0
        np.testing.assert_allclose(theirs[key], ours[key], rtol=1e-5, err_msg=f"{what} {key}")


def test_three_layouts_and_a_run_that_moves_between_them(tmp_path):
    """AR, strict: 2x1 with ZeRO-1, 1x2, and a run dropped under the first and resumed under the second end with the
    same bits as one process: weights, moments and average. DiT, ordinary: both to 1e-5."""
    ar = {"task": "ar", "strict": True, "ema": 0.8, "steps": 6}
    dit = {"task": "dit", "steps": 6}
    two, pipe = {"dp": 2, "zero": True}, {"pp": 2}
    moved = {**ar, "folder": "moved", "save": 3}
    cases = [{**ar, **two}, {**ar, **pipe}, {**moved, **two, "until": 4}, {**moved, **pipe},
             {**dit, **two}, {**dit, **pipe}]
    run(tmp_path, 2, *cases)
    single = runs.train(ar, tmp_path)
    runs.train(dit, tmp_path)
    one = runs.outcome(ar, tmp_path)
    assert set(one["sha"]) == {"model", "opt", "ema"} and one["step"] == 6
    assert {name for name in one["tensors"]["model"]} == set(single.parameters)
    for case in cases[:4]:
        assert runs.outcome(case, tmp_path)["sha"] == one["sha"], case
    one = runs.outcome(dit, tmp_path)
    for case in cases[4:]:
        close(one, runs.outcome(case, tmp_path), runs.name_of(case))


def matrix(world):
    """All layouts and schedules of line 6 for a number of processes; six layers make two chunks for each of four."""
    layouts = {2: [(2, 1), (1, 2)], 4: [(4, 1), (1, 4), (2, 2)]}[world]
    kinds = [("1f1b", 1), ("gpipe", 1), ("interleaved", 2)]
    return [{"dp": dp, "pp": pp, "schedule": schedule, "chunks": chunks}
            for dp, pp in layouts for schedule, chunks in (kinds if pp > 1 else kinds[:1])]


def check_all(folder, one, world, cases):
    """Every case in one job; each is the run `one`: curves to 1e-5 and, where it is strict, the same SHA-256."""
    runs.train(one, folder)
    cases = [{**one, **case} for case in cases]
    run(folder, world, *cases)
    expected = runs.outcome(one, folder)
    for case in cases:
        found = runs.outcome(case, folder)
        close(expected, found, runs.name_of(case))
        if case["strict"]:
            assert found["sha"] == expected["sha"], case


@pytest.mark.slow
@pytest.mark.parametrize("zero", [False, True], ids=["whole", "zero1"])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("strict", [False, True], ids=["ordinary", "strict"])
@pytest.mark.parametrize("task", ["ar", "dit"])
def test_matrix(tmp_path, task, strict, world, zero):
    """30 steps: 2x1, 4x1, 1x2, 1x4, 2x2, each with and without ZeRO-1, each schedule: curves of 1x1 to 1e-5; strict:
    its SHA-256 of weights and optimizer state."""
    check_all(tmp_path, {"task": task, "strict": strict, "layers": 6}, world,
              [{**case, "zero": zero} for case in matrix(world)])


@pytest.mark.slow
def test_eight_processes(tmp_path):
    """8x1, 4x2, 2x4, 1x8, strict, with ZeRO-1: the bits of one process. Micro-batches of one sample."""
    cases = [{"dp": dp, "pp": 8 // dp, "zero": dp > 1} for dp in (8, 4, 2, 1)]
    check_all(tmp_path, {"task": "ar", "strict": True, "layers": 6, "micro": 1, "steps": 4}, 8, cases)


@pytest.mark.slow
def test_gradients_may_travel_in_bfloat16(tmp_path):
    """reduce_dtype bfloat16: near the float32 run, not equal to it."""
    case = {"task": "ar", "dp": 2, "steps": 8}
    run(tmp_path, 2, case, {**case, "reduce": "bfloat16"})
    exact, rounded = (runs.outcome(c, tmp_path) for c in (case, {**case, "reduce": "bfloat16"}))
    np.testing.assert_allclose(rounded["loss"], exact["loss"], rtol=2e-2)
    assert rounded["sha"] != exact["sha"]
