"""Triage of real msrun jobs with MindSpore's scheduler and collectives, one rank of which goes wrong on purpose."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mindglm.diagnose import triage
from tests.launch.stand_ins import ROOT, free_port

WORKER = ROOT / "tests/diagnose/sabotaged_worker.py"
MSRUN = shutil.which("msrun", path=str(Path(sys.executable).parent))


def environment() -> dict[str, str]:
    """10 s instead of 600 until a silent rank is given up."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK_ID", "MS_ROLE")}
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "MS_NODE_TIMEOUT": "10", "GLOG_v": "3"}


def run(command: list, logs: Path, what_is_said: str) -> None:
    logs.mkdir(exist_ok=True)
    with open(logs / what_is_said, "w") as file:
        subprocess.run([str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, env=environment(),
                       cwd=logs.parent, stdin=subprocess.DEVNULL, timeout=400)


def msrun(how: str, logs: Path, address="127.0.0.1", port: int | None = None, seconds=60, join=True) -> None:
    run([MSRUN, "--worker_num=2", "--local_worker_num=2", f"--master_addr={address}",
         f"--master_port={port or free_port()}", f"--log_dir={logs}", f"--join={join}", f"--cluster_time_out={seconds}",
         WORKER, how], logs, "msrun.out")


def test_our_launcher_and_triage_name_the_killed_rank(tmp_path):
    """launch/supervise.py ends the job at once and notes in the log folder how the worker died."""
    logs = tmp_path / "logs"
    run([sys.executable, ROOT / "launch/supervise.py", "--workers", 2, "--log-dir", logs, "--", "python", WORKER,
         "killed"], tmp_path, "console")
    verdict = triage.of_folder(logs)
    assert (verdict.cause, verdict.rank) == ("killed", 1), verdict
    assert "killed by SIGKILL" in verdict.evidence[0].text and verdict.evidence[-1].text == "step 3: 2 ranks"


@pytest.mark.slow
@pytest.mark.parametrize("how, cause, words", [
    ("raise_error", "exception", "ValueError: rank 1 has had enough"),
    ("exit_silently", "ended_early", "exit code 3"),
    ("leave_early", "vanished", "the scheduler lost it"),
    ("hang", "hangs", "says nothing while rank 0 waited"),
    ("killed", "killed", "was killed (SIGKILL)"),
    ("segfault", "crash", "crashed (SIGSEGV)"),
    ("host_memory", "host_memory", "MemoryError"),
    ("disk_full", "disk_full", "No space left on device"),
    ("missing_op", "missing_op", "einsum only supports Ascend"),
    ("mistake", "mistake", "no such folder: data/none"),
    ("early_mistake", "mistake", "no such folder: data/none"),
    ("early_raise_error", "exception", "ValueError: rank 1 has had enough"),
])
def test_one_rank_goes_wrong(tmp_path, how, cause, words):
    msrun(how, tmp_path / "logs", seconds=25 if how.startswith("early") else 60)
    verdict = triage.of_folder(tmp_path / "logs")
    assert (verdict.cause, verdict.rank) == (cause, 1), verdict
    assert words in verdict.summary, verdict


@pytest.mark.slow
def test_the_schedulers_port_is_taken(tmp_path):
    with contextlib.closing(socket.create_server(("", 0))) as server:
        msrun("none", tmp_path / "logs", port=server.getsockname()[1], seconds=20)
    assert triage.of_folder(tmp_path / "logs").cause == "port_busy"


@pytest.mark.slow
def test_the_master_address_is_none_of_this_machine(tmp_path):
    """192.0.2.254 belongs to nobody (RFC 5737)."""
    msrun("none", tmp_path / "logs", address="192.0.2.254", seconds=20)
    verdict = triage.of_folder(tmp_path / "logs")
    assert (verdict.cause, verdict.rank) == ("no_scheduler", None), verdict
