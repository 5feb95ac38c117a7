"""The launch scripts with MindSpore's own msrun, scheduler and collectives: killed at init, in a step, in a save."""

import shlex
import signal
import sys
import time

import numpy as np
import pytest

from mindglm.checkpoint import store
from tests.launch.stand_ins import ROOT, Place, free_port
from tests.parallel import curve_worker
from tests.train import fake

RECIPE = [ROOT / "recipes/nano/dit.yaml", "parallel_config.data_parallel=2"]  # for its number of workers


def place_for(tmp_path, how):
    worker = [sys.executable, str(ROOT / "tests/launch/struck_worker.py"), how, str(tmp_path / "run")]
    return Place(tmp_path, real_msrun=True, train=shlex.join(worker))


def died_ago(tmp_path) -> float:
    return time.time() - float((tmp_path / "run" / "struck").read_text())


def assert_as_undisturbed(tmp_path):
    """The weights of the last checkpoint are those of one process that nothing happened to."""
    trainer = fake.make_trainer(curve_worker.settings(tmp_path / "one", 1), held_out=fake.Dataset(20, offset=300))
    trainer.fit()
    ours = store.load(tmp_path / "run" / "checkpoint")
    assert ours.step == curve_worker.STEPS
    for name, values in fake.weights(trainer).items():
        np.testing.assert_allclose(ours.tensors["model"][name], values, atol=1e-5, err_msg=name)


def test_a_worker_killed_in_a_step_ends_both_nodes(tmp_path):
    """Two "nodes" are two msruns on the loopback address, with ssh that stays here."""
    place = place_for(tmp_path, "step")
    (place.work / "hosts").write_text("nodeA\nnodeB\n")
    code, text = place.run("bash", ROOT / "launch/train_cluster.sh", "--hosts", "hosts", "--master-addr", "127.0.0.1",
                           "--master-port", free_port(), *RECIPE, seconds=300)
    assert died_ago(tmp_path) < 20
    assert code == 137, text
    assert "rank 1 failed first (killed by SIGKILL" in text
    assert text.splitlines()[-1] == "mindglm: node 1 (nodeB) failed first, rank 1 first, exit code 137; see above"
    for rank in (0, 1):
        assert (place.work / f"output/msrun_log/worker_{rank}.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how, code, words", [
    ("init", 137, "rank 1 failed first (killed by SIGKILL"),
    ("step", 137, "rank 1 failed first (killed by SIGKILL"),
    ("save", 137, "rank 0 failed first (killed by SIGKILL"),
    ("raise", 1, "ValueError: rank 1 has had enough"),
])
def test_killed_and_started_again(tmp_path, how, code, words):
    """Killed at init, in a step, in a save: the job ends at once; the next start goes on to the very same weights."""
    place = place_for(tmp_path, how)
    train = ["bash", ROOT / "launch/train_node.sh", "--log-dir", "logs", *RECIPE]
    ours, text = place.run(*train, seconds=300)
    assert died_ago(tmp_path) < 20
    assert ours == code and words in text, text
    if how == "save":
        assert store.steps(tmp_path / "run" / "checkpoint") == [5]
    ours, text = place.run(*train, seconds=300)
    assert ours == 0, text
    assert_as_undisturbed(tmp_path)


@pytest.mark.slow
def test_a_cluster_starts_again_by_itself(tmp_path):
    place = place_for(tmp_path, "step")
    (place.work / "hosts").write_text("nodeA\nnodeB\n")
    code, text = place.run("bash", ROOT / "launch/train_cluster.sh", "--hosts", "hosts", "--master-addr", "127.0.0.1",
                           "--max-restarts", 1, "--master-port", free_port(), *RECIPE, seconds=400)
    assert code == 0, text
    assert "starting all nodes again" in text
    assert_as_undisturbed(tmp_path)


@pytest.mark.slow
def test_nodes_started_by_hand_end_together(tmp_path):
    """No launcher above them: the scheduler notices the silent worker after 11 s, and node 0 ends with it."""
    place = place_for(tmp_path, "step")
    port = free_port()
    nodes = [place.start("bash", ROOT / "launch/train_node.sh", "--nodes", 2, "--node-rank", rank, "--master-port",
                         port, *RECIPE) for rank in (0, 1)]
    texts = [node.communicate(timeout=300)[0] for node in nodes]
    assert died_ago(tmp_path) < 20
    assert nodes[1].returncode == 137 and nodes[0].returncode != 0, texts


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_goes_on(tmp_path):
    place = place_for(tmp_path, "slow")
    train = ["bash", ROOT / "launch/train_node.sh", "--log-dir", "logs", *RECIPE]
    process = place.start(*train)
    end = time.monotonic() + 200
    ledger = tmp_path / "run" / "metrics.jsonl"
    while not (ledger.exists() and ledger.read_text()):  # a step is done
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 143, text
    assert 0 < store.load(tmp_path / "run" / "checkpoint").step < curve_worker.STEPS
    code, text = place.run(*train, seconds=300)
    assert code == 0, text
    assert_as_undisturbed(tmp_path)
