"""Stand-ins for what the launch scripts start: msrun that spawns as the real one does, and ssh that stays here."""

import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# As MindSpore's with --join=False: the scheduler on node 0, each worker in a session of its own, logs by rank.
MSRUN = rf"""#!{sys.executable} -S
import os, subprocess, sys
words = sys.argv[1:]
options = {{}}
while words[0].startswith("--"):
    name, _, value = words.pop(0)[2:].partition("=")
    options[name] = value
logs, local = options["log_dir"], int(options["local_worker_num"])
os.makedirs(logs, exist_ok=True)
def start(name, session, **variables):
    with open(os.path.join(logs, name), "w") as log:
        subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=session,
                         env={{**os.environ, **variables}})
if options["node_rank"] == "0":
    start("scheduler.log", False, MS_ROLE="MS_SCHED", RANK_ID="0")
for rank in range(int(options["node_rank"]) * local, (int(options["node_rank"]) + 1) * local):
    start(f"worker_{{rank}}.log", True, MS_ROLE="MS_WORKER", RANK_ID=str(rank), RANK_SIZE=options["worker_num"])
"""

SSH = r"""#!/usr/bin/env bash
while [ "${1:0:1}" = - ]; do shift 2; done
host="$1"; shift
echo "$host" >> "$SSH_HOSTS"
if [ "$host" = unreachable ]; then echo "ssh: connect to host unreachable port 22: No route to host"; exit 255; fi
exec bash -c "$*"
"""

# One worker or the scheduler: $1 is what becomes of rank 1 (rank 0 where there is no other), the others work on.
WORKER = r"""
if [ "$MS_ROLE" = MS_SCHED ]; then while sleep 0.1; do [ -e finished ] && exit 0; done; fi
echo "mindglm: loading"
trap 'echo "rank $RANK_ID saves"; touch saved_$RANK_ID; exit 143' TERM
echo $$ >> pids
sleep 300 & echo $! >> pids   # a process of the worker's own, as a data loader has
touch ready_$RANK_ID
while [ ! -e ready_$((RANK_SIZE - 1)) ]; do sleep 0.05; done
if [ "$RANK_ID" = 1 ]; then
    sleep 0.5 # msrun is gone by now
    case "$1" in
    raise)   printf 'mindglm: rank 1 failed\nTraceback (most recent call last):\nValueError: boom\n'; exit 1 ;;
    once)    if [ ! -e struck ]; then touch struck; echo "first try"; kill -KILL $$; fi ;;
    killed)  echo "the last words"; kill -KILL $$ ;;
    mistake) echo "mindglm: train_dataset.dataset_dir: no such folder"; exit 2 ;;
    esac
fi
if [ "$1" = done ] || [ "$1" = once ]; then touch finished; kill %1; exit 0; fi
while sleep 0.1; do
    # For want of rank 1 this one fails too, a moment later.
    if [ "$1" = raise ] && [ ! -d /proc/$(sed -n 3p pids) ]; then echo "Traceback: AllReduce failed"; exit 1; fi
done
"""


# `python -m mindglm train ...` runs {train} instead, everything else is the true Python.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in "-m mindglm train"*) exec {train} ;; esac
exec {python} "$@"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Place:
    """A working directory with the stand-ins on PATH. real_msrun: MindSpore's own. train: what a training is (bash)."""

    def __init__(self, folder: pathlib.Path, real_msrun: bool = False, train: str = ""):
        self.work, bin_dir = folder / "work", folder / "bin"
        self._started: list[subprocess.Popen] = []
        self.work.mkdir(parents=True)
        bin_dir.mkdir()
        programs = {"ssh": SSH}
        if real_msrun:
            (bin_dir / "msrun").symlink_to(shutil.which("msrun", path=str(pathlib.Path(sys.executable).parent)))
        else:
            programs["msrun"] = MSRUN
        python = shlex.quote(sys.executable)  # a link to it would not find its environment
        programs["python"] = PYTHON.format(train=train or f'{python} "$@"', python=python)
        for name, text in programs.items():
            (bin_dir / name).write_text(text)
            (bin_dir / name).chmod(0o755)
        (self.work / "worker.sh").write_text(WORKER)
        self.environment = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "MINDGLM_VENV": str(folder),
                            "SSH_HOSTS": str(self.work / "ssh_hosts"), "PYTHONPATH": str(ROOT)}
        for name in ("MINDGLM_ENV_FILE", "HCCL_IF_IP", "HCCL_SOCKET_IFNAME", "RANK_ID", "MS_ROLE", "GLOG_v"):
            self.environment.pop(name, None)

    def start(self, *command, **environment) -> subprocess.Popen:
        process = subprocess.Popen([str(word) for word in command], cwd=self.work, text=True, start_new_session=True,
                                   env={**self.environment, **environment}, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what a failed test left running: the second signal kills."""
        for process in self._started:
            while process.poll() is None:
                process.send_signal(signal.SIGTERM)
                time.sleep(0.2)

    def run(self, *command, seconds: float = 90, **environment) -> tuple[int, str]:
        """(exit code, output) of a command that ends by itself."""
        process = self.start(*command, **environment)
        text, _ = process.communicate(timeout=seconds)
        return process.returncode, text

    def supervise(self, what: str, *options, workers: int = 2) -> list:
        """The command line of a watched job whose rank 1 fares as `what` says (see WORKER)."""
        return [sys.executable, ROOT / "launch" / "supervise.py", "--workers", workers, "--log-dir", "logs", *options,
                "--", "bash", "worker.sh", what]

    def await_file(self, name: str) -> None:
        end = time.monotonic() + 30
        while not (self.work / name).exists():
            assert time.monotonic() < end, f"{name} never came"
            time.sleep(0.02)

    def survivors(self) -> list[int]:
        """Which of the processes that the workers noted still run (a zombie does not)."""
        alive = []
        for pid in (self.work / "pids").read_text().split():
            status = pathlib.Path("/proc", pid, "stat")
            if status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
                alive.append(int(pid))
        return alive
