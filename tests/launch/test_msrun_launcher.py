"""launch/msrun_launcher.sh takes what people type for mindformers' script of that name."""

import re
import socket
import time

import pytest

from tests.launch.stand_ins import ROOT, Place, free_port

LAUNCHER = ["bash", ROOT / "launch" / "msrun_launcher.sh"]


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.close()


def test_joined_job_on_one_machine(place):
    code, text = place.run(*LAUNCHER, "bash worker.sh mistake", 2, free_port(), "logs", "True", 300)
    assert code == 2, text
    assert "--worker_num=2 --local_worker_num=2" in text and "--cluster_time_out=300" in text
    assert "rank 1 failed first" in text and (place.work / "logs/worker_1.log").exists()


def test_background_job_is_watched_too(place):
    """JOIN False, the default: back at once; the job is watched all the same, and a signal to it stops it."""
    start = time.monotonic()
    code, text = place.run(*LAUNCHER, "bash worker.sh killed", 2, free_port(), "logs", "False", 300)
    assert code == 0 and time.monotonic() - start < 15, text
    assert re.search(r"background \(process \d+\)", text) and "logs/launcher.log" in text
    end = time.monotonic() + 30
    while "the last words" not in (place.work / "logs/launcher.log").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "rank 1 failed first (killed by SIGKILL" in (place.work / "logs/launcher.log").read_text()
    assert place.survivors() == []


def test_one_node_of_two(place):
    """Nine arguments; node 1 has the upper ranks. Its scheduler is elsewhere, here nowhere: the workers do not mind."""
    code, text = place.run(*LAUNCHER, "bash worker.sh done", 2, 1, "127.0.0.1", free_port(), 1, "logs", "True", 60)
    assert code == 0, text
    assert "--worker_num=2 --local_worker_num=1" in text and "--node_rank=1" in text
    assert (place.work / "logs/worker_1.log").exists() and not (place.work / "logs/worker_0.log").exists()


def test_the_command_may_be_mindglm_and_may_quote(place):
    code, text = place.run(*LAUNCHER, "mindglm train r.yaml 'a=b c'", 2, free_port(), "logs", "True", 60)
    assert "-m mindglm train r.yaml 'a=b c'" in text
    assert code == 2 and "r.yaml" in text.split("failed first")[1], text


@pytest.mark.parametrize("arguments, words", [
    ([], "0 were given"),
    (["x", "2", "8118"], "3 were given"),
    (["x", "1"], "Call it alone: x"),
    (["x", "two"], "two stands where a number is expected"),
    (["x", "4", "3", "127.0.0.1", "8118", "0", "logs", "True", "60"], "no multiple"),
    (["x", "2", "8118", "logs", "perhaps", "60"], "JOIN is perhaps"),
])
def test_wrong_arguments_are_refused(place, arguments, words):
    code, text = place.run(*LAUNCHER, *arguments)
    assert code == 2 and words in text, text


def test_a_port_that_is_taken_is_said(place):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, text = place.run(*LAUNCHER, "bash worker.sh done", 2, other.getsockname()[1], "logs", "True", 60)
    assert code == 2 and "perhaps by another job" in text
