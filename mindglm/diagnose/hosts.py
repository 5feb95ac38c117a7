"""The hosts file of a cluster, and asking all its machines at once over ssh.

On every machine `mindglm doctor --facts` runs with the environment of launch/environment.sh, under the same paths as
here; its answer is one line of JSON.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mindglm.diagnose.cluster import Answer
from mindglm.diagnose.machine import Machine
from mindglm.errors import UserError

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
SECONDS = 90  # for an answer
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Host:
    """A line of the hosts file."""

    name: str
    slots: int | None
    address: str


def read_hosts(path: str) -> list[Host]:
    """The hosts of a file, in its order. UserError with the line for whatever is wrong in it."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise UserError(f"--hosts {path}: {error.strerror}; expected a file with a machine a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--hosts {path}: no text; expected a file with a machine a line") from error
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        values = dict(word.partition("=")[::2] for word in words[1:])
        unknown = set(values) - {"slots", "addr"}
        if unknown or "=" in words[0] or not values.get("slots", "1").isdigit():
            raise UserError(f"{path}:{number}: {line.strip()!r}; expected NAME [slots=NUMBER] [addr=ADDRESS]")
        if words[0] in [host.name for host in hosts]:
            raise UserError(f"{path}:{number}: {words[0]} stands there twice; one line a machine, slots=8 for 8 "
                            "workers")
        slots = int(values["slots"]) if "slots" in values else None
        # user@name is for ssh alone
        hosts.append(Host(words[0], slots, values.get("addr", words[0].rpartition("@")[2])))
    if not hosts:
        raise UserError(f"{path} names no machine; expected lines like: node1 slots=8")
    return hosts


def command(host: Host, arguments: list[str]) -> list[str]:
    """What asks `host`: the same environment as a training there has."""
    environment = ROOT / "launch" / "environment.sh"
    variables = {"MINDGLM_VENV": os.environ.get("MINDGLM_VENV", sys.prefix),
                 "MINDGLM_ENV_FILE": os.environ.get("MINDGLM_ENV_FILE", "")}
    settings = [f"{name}={value}" for name, value in variables.items() if value]
    words = shlex.join(["-m", "mindglm", "doctor", *arguments])
    script = (f'set -e; source {shlex.quote(str(environment))}; exec "$PYTHON" {words}' if environment.exists()
              else f"exec {shlex.quote(sys.executable)} {words}")
    there = shlex.join(["env", *settings, "bash", "-c", script])
    return [*SSH, host.name, f"cd {shlex.quote(os.getcwd())} && exec {there}"]


def ask(host: Host, arguments: list[str]) -> Answer:
    """One machine's facts, or why there are none."""
    asked = time.time()
    try:
        result = subprocess.run(command(host, ["--facts", *arguments]), capture_output=True, text=True,
                                stdin=subprocess.DEVNULL, timeout=SECONDS)
    except FileNotFoundError as error:
        raise UserError("no ssh on this machine's PATH; install it, or run mindglm doctor on each machine") from error
    except subprocess.TimeoutExpired:
        return Answer(host.name, None, f"no answer within {SECONDS} s", asked, time.time())
    answered = time.time()
    for line in reversed(result.stdout.splitlines()):
        if line.startswith("{"):
            return Answer(host.name, Machine.from_json(json.loads(line)), "", asked, answered)
    told = (result.stderr.strip() or result.stdout.strip() or "it said nothing").splitlines()[-1]
    return Answer(host.name, None, f"exit code {result.returncode}: {told}", asked, answered)


def ask_all(questions: list[tuple[Host, list[str]]]) -> list[Answer]:
    """All machines at once, each with its own arguments; the answers in the same order."""
    with ThreadPoolExecutor(max_workers=64) as pool:
        return list(pool.map(lambda question: ask(*question), questions))


class Listener:
    """Node 0's port, held open over ssh while the others try to reach it."""

    def __init__(self, host: Host, port: int):
        self._process = subprocess.Popen(command(host, ["--listen", str(port)]), stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __enter__(self) -> "Listener":
        # The first line says that it listens; an empty one that it has ended.
        while (line := self._process.stdout.readline()) and not line.startswith("listening"):
            continue
        self.listens = bool(line)
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()  # its signal to leave
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
