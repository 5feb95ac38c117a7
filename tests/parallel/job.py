"""Starts a scheduler and workers as msrun would, but without msrun's own 8 seconds and with all output at hand."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCHEDULER = "from mindglm.parallel.transport import exit_if_scheduler; exit_if_scheduler(); exit('not reached')"


class Job:
    """`workers` processes of `python ARGS`; use as a context manager, which ends whatever still runs."""

    def __init__(self, workers: int, args: list[str], logs: Path, **env: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        base = {**os.environ, "PYTHONPATH": str(ROOT), "MS_WORKER_NUM": str(workers), "MS_SCHED_HOST": "127.0.0.1",
                "MS_SCHED_PORT": str(port), "OMP_NUM_THREADS": "1", "MS_TOPO_TIMEOUT": "120", **env}
        self.scheduler = self._start("scheduler", [sys.executable, "-c", SCHEDULER], {**base, "MS_ROLE": "MS_SCHED"})
        self.workers = [
            self._start(f"worker_{i}", [sys.executable, *args],
                        {**base, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(i), "RANK_ID": str(i)})
            for i in range(workers)]

    def _start(self, name: str, command: list[str], env: dict) -> subprocess.Popen:
        with open(self._logs / f"{name}.log", "w") as log:
            return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=self._logs)

    def wait(self, seconds: float = 180) -> list[int]:
        """Exit codes of the workers. AssertionError with their logs when they take longer."""
        end = time.monotonic() + seconds
        while any(worker.poll() is None for worker in self.workers):
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)
        return [worker.returncode for worker in self.workers]

    def logs(self) -> str:
        """What the workers printed, without MindSpore's warnings."""
        texts = []
        for path in sorted(self._logs.glob("worker_*.log")):
            lines = path.read_text(errors="replace").splitlines()
            kept = [line for line in lines if not line.startswith(("[WARN", "[INFO"))]
            texts.append(f"== {path.name}\n" + "\n".join(kept[-40:]))
        return "\n".join(texts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                process.kill()
            process.wait()
