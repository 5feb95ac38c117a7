"""launch/supervise.py with a stand-in for msrun: who is named when a worker dies, what is left, what starts again."""

import os
import signal
import socket
import sys
import time

import pytest

from tests.launch.stand_ins import ROOT, Place


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.close()


def test_a_job_that_ends_well(place):
    code, text = place.run(*place.supervise("done"))
    assert code == 0, text
    assert "mindglm: loading" in text, "worker 0's log belongs on the console"
    assert place.survivors() == []
    assert {path.name for path in (place.work / "logs").iterdir()} == {
        "worker_0.log", "worker_1.log", "scheduler.log", "msrun_0.log"}


@pytest.mark.parametrize("what, code, words", [
    ("raise", 1, ["rank 1 failed first (exit code 1)", "ValueError: boom"]),
    ("killed", 137, ["rank 1 failed first (killed by SIGKILL", "the last words"]),
    ("mistake", 2, ["rank 1 failed first (exit code 2)", "mindglm: train_dataset.dataset_dir: no such folder"]),
])
def test_a_worker_that_dies_ends_the_job_and_is_named(place, what, code, words):
    start = time.monotonic()
    ours, text = place.run(*place.supervise(what, "--max-restarts", "0", workers=3))
    assert ours == code, text
    assert time.monotonic() - start < 20
    for word in words:
        assert word in text
    assert "AllReduce failed" not in text.split("failed first")[1], "an error that only follows from the first"
    assert place.survivors() == []


def test_a_fault_is_followed_by_a_new_start_and_a_mistake_is_not(place):
    code, text = place.run(*place.supervise("once", "--max-restarts", "2"))
    assert code == 0, text
    assert text.count("mindglm: msrun") == 2 and "(2 more allowed)" in text
    assert "first try" in (place.work / "logs" / "attempt_0" / "worker_1.log").read_text()
    assert "first try" not in (place.work / "logs" / "worker_1.log").read_text()
    for name in place.work.glob("ready_*"):
        name.unlink()
    code, text = place.run(*place.supervise("mistake", "--max-restarts", "2"))
    assert code == 2 and text.count("mindglm: msrun") == 1


def test_restarts_come_to_an_end(place):
    code, text = place.run(*place.supervise("killed", "--max-restarts", "1"))
    assert code == 137 and text.count("mindglm: msrun") == 2 and text.count("failed first") == 2
    assert place.survivors() == []


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_makes_the_workers_save_and_leave(place, number, code):
    process = place.start(*place.supervise("work", "--max-restarts", "3"))
    for rank in (0, 1):
        place.await_file(f"ready_{rank}")
    time.sleep(0.3)
    (place.work / "finished").touch()  # the stand-in scheduler leaves with its workers
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == code, text
    assert "asked to save" in text and (place.work / "saved_0").exists() and (place.work / "saved_1").exists()
    assert place.survivors() == [] and text.count("mindglm: msrun") == 1


def test_a_second_signal_kills(place):
    worker = place.work / "worker.sh"
    worker.write_text(worker.read_text().replace("trap '", "trap 'echo deaf #"))
    process = place.start(*place.supervise("work"))
    place.await_file("ready_1")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and place.survivors() == []


def test_a_signal_at_the_very_start_is_not_waited_for(place):
    """Rank 1 cannot save yet and dies of the signal; rank 0 waits for it, which would last as long as a save may."""
    worker = place.work / "worker.sh"
    text = worker.read_text().replace("trap '", "[ $RANK_ID = 1 ] || trap 'echo deaf #")
    worker.write_text(text)
    process = place.start(*place.supervise("work", "--max-restarts", "3"))
    place.await_file("ready_0")
    place.await_file("ready_1")
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - start < 20, text
    assert place.survivors() == [] and text.count("mindglm: msrun") == 1


def test_a_worker_that_cannot_save_when_it_is_asked_to_is_named(place):
    """Rank 1 fails in its save, rank 0 waits for it: the job does not end as one that has saved."""
    worker = place.work / "worker.sh"
    failing = "echo mindglm: the checkpoint could not be written; exit 2"
    worker.write_text(worker.read_text().replace(
        "trap '", f"trap 'if [ $RANK_ID = 1 ]; then sleep 0.5; {failing}; else sleep 60; fi;"))
    process = place.start(*place.supervise("work", "--max-restarts", "3"))
    place.await_file("ready_0")
    place.await_file("ready_1")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    told = text.split("rank 1 failed first")[1]
    assert "the checkpoint could not be written" in told and text.count("mindglm: msrun") == 1
    assert place.survivors() == []


def test_workers_that_somebody_else_stops_have_not_failed(place):
    """A scheduler such as Slurm signals every process itself: all leave with 143, and nothing is started again."""
    process = place.start(*place.supervise("work", "--max-restarts", "3"))
    place.await_file("ready_0")
    place.await_file("ready_1")
    time.sleep(0.5)
    (place.work / "finished").touch()
    for pid in place.survivors():
        os.kill(pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143, text
    assert "failed first" not in text and text.count("mindglm: msrun") == 1


def test_a_node_ends_when_the_scheduler_of_node_0_is_gone(place):
    """Nodes started by hand, without a launcher above them that could say so."""
    with socket.socket() as scheduler:
        scheduler.bind(("127.0.0.1", 0))
        scheduler.listen()
        options = ["--nodes", 2, "--node-rank", 1, "--master-port", scheduler.getsockname()[1]]
        process = place.start(*place.supervise("work", *options))
        scheduler.accept()[0].close()
    closed = time.monotonic()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "node 0 has ended" in text, text
    assert time.monotonic() - closed < 25 and place.survivors() == []


def test_a_scheduler_that_fails_ends_the_job(place):
    worker = place.work / "worker.sh"
    serving = "while sleep 0.1; do [ -e finished ] && exit 0; done"
    assert serving in worker.read_text()
    worker.write_text(worker.read_text().replace(serving, "echo the sun went out; exit 1"))
    code, text = place.run(*place.supervise("work"))
    assert code == 1 and "the scheduler failed first" in text and "the sun went out" in text, text
    assert place.survivors() == []


def test_what_cannot_be_started_is_said_at_once(place):
    supervise = [sys.executable, ROOT / "launch" / "supervise.py"]
    cases = [
        (["--workers", 2], "nothing to run"),
        (["--workers", 3, "--nodes", 2, "--", "x"], "shared evenly"),
        (["--workers", 2, "--nodes", 2, "--node-rank", 2, "--master-port", 8118, "--", "x"], "--node-rank is 2"),
        (["--workers", 2, "--nodes", 2, "--", "x"], "--master-port"),
        (["--workers", 2, "--nodes", 2, "--master-port", 8118, "--max-restarts", 1, "--", "x"], "train_cluster.sh"),
        (["--train", "--workers", 2, ROOT / "recipes/nano/dit.yaml"], "makes 1"),
        (["--train", "--max-restart", 2, ROOT / "recipes/nano/dit.yaml"], "unrecognized arguments: --max-restart"),
        (["--train", "nowhere.yaml"], "nowhere.yaml"),
    ]
    for arguments, words in cases:
        code, text = place.run(*supervise, *arguments)
        assert code == 2 and words in text and "Traceback" not in text, (arguments, text)


def test_the_recipe_says_how_many_workers_there_are(place):
    code, text = place.run("bash", ROOT / "launch" / "train_node.sh", "--dry-run", ROOT / "recipes/nano/dit.yaml",
                           "parallel_config.data_parallel=2", "runner_config.global_batch_size=32")
    assert code == 0, text
    assert "--worker_num=2 --local_worker_num=2" in text and "--node_rank=0" in text
    assert "--log_dir=output/msrun_log" in text
    assert text.strip().endswith("parallel_config.data_parallel=2 runner_config.global_batch_size=32")


def test_a_restart_of_a_training_resumes(place):
    sys.path.insert(0, str(ROOT / "launch"))
    try:
        import supervise
    finally:
        sys.path.pop(0)
    args = supervise.build_parser().parse_args(["--train", str(ROOT / "recipes/nano/dit.yaml"), "seed=3"])
    command = supervise.again(args, supervise.worker_command(args))
    assert command[-2:] == ["seed=3", "resume_training=true"] and supervise.again(args, command) == command
