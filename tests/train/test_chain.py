"""Promise 4: a run that changes its layout, is stopped and killed, is the run that nothing happened to."""

import json
import os
import signal
import time

import numpy as np
import pytest

from mindglm import ledger
from mindglm.checkpoint import store
from mindglm.cli.main import main
from tests.parallel import same_run_worker as runs
from tests.parallel.job import ROOT, Job
from tests.train import chain_worker

WORKER = str(ROOT / "tests/train/chain_worker.py")


def leg(folder, world, case, *how):
    """One start of the run; ends by itself, or with the process that is to be killed."""
    logs = folder / f"logs_{len(list(folder.iterdir()))}"
    with Job(world, [WORKER, str(folder), json.dumps(case), *how], logs, MS_NODE_TIMEOUT="120") as job:
        if not how:
            assert job.wait(400) == [0] * world, job.logs()
            return
        end = time.monotonic() + 400
        while not any(worker.poll() is not None for worker in job.workers):
            assert time.monotonic() < end, job.logs()
            time.sleep(0.05)
        assert -signal.SIGKILL in [worker.poll() for worker in job.workers], job.logs()


def stopped_by_sigterm(case, folder, step):
    """One process; SIGTERM after `step` steps."""
    trainer = chain_worker.trainer_of(case, folder)
    check = trainer._due

    def due():
        check()
        if trainer.counters.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer._due = due
    with pytest.raises(SystemExit) as left:
        trainer.fit()
    assert left.value.code == 143


def losses(run):
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[key] for line in lines if key in line] for key in ("loss", "grad_norm", "validation_loss")]


def chain(tmp_path, case):
    """1x1 -> SIGTERM at 10 -> 2x1 -> kill -9 at 13 -> 1x2 -> kill -9 in the save of 16 -> 2x2 with ZeRO-1 -> end."""
    case, root = {**case, "folder": "chain"}, tmp_path / "chain" / "checkpoint"
    stopped_by_sigterm(case, tmp_path, 10)
    assert store.steps(root)[-1] == 10
    leg(tmp_path, 2, {**case, "dp": 2}, "kill_after=13")
    assert store.steps(root)[-1] == 12
    leg(tmp_path, 2, {**case, "pp": 2}, "kill_in_save=16")
    assert store.steps(root)[-1] == 12
    leg(tmp_path, 4, {**case, "dp": 2, "pp": 2, "zero": True})
    return tmp_path / "chain"


def check(tmp_path, case):
    moved = chain(tmp_path, case)
    straight = chain_worker.trainer_of({**case, "folder": "straight"}, tmp_path)
    straight.fit()
    one = straight.output_dir
    strict = case.get("strict", False)
    tolerance = ["--tolerance", "0"] if strict else []
    assert main(["audit", str(one), str(moved), *tolerance]) == 0
    ours, theirs = (ledger.read(run / "ledger.jsonl") for run in (one, moved))
    assert [[line.get(key) for key in ("step", "data", "draws")] for line in ours] == \
        [[line.get(key) for key in ("step", "data", "draws")] for line in theirs]
    for a, b in zip(losses(one), losses(moved)):
        assert len(a) == len(b) > 0
        np.testing.assert_allclose(b, a, rtol=1e-5)
    found = [store.load(run / "checkpoint") for run in (one, moved)]
    assert [checkpoint.step for checkpoint in found] == [chain_worker.STEPS] * 2
    log = (moved / "log" / "train.log").read_text()
    assert log.count("resumed from") == 3 and "with other" not in log
    if strict:
        assert (one / "ledger.jsonl").read_bytes() == (moved / "ledger.jsonl").read_bytes()
        sha = [runs.outcome({**case, "folder": run.name}, tmp_path)["sha"] for run in (one, moved)]
        assert sha[0] == sha[1] and set(sha[0]) == {"model", "opt", "ema"}


def test_four_layouts_two_kills_one_run(tmp_path):
    """Strict numerics: the ledger byte for byte, weights, moments and average by SHA-256."""
    check(tmp_path, {"task": "ar", "strict": True, "layers": 2})


@pytest.mark.slow
@pytest.mark.parametrize("case", [{"task": "ar"}, {"task": "dit"}, {"task": "dit", "strict": True}],
                         ids=["ar", "dit", "dit-strict"])
def test_the_same_with_other_models_and_ordinary_sums(tmp_path, case):
    check(tmp_path, case)
