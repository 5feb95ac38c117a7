"""What supervise.py and cluster.py share: processes as /proc tells of them, their logs, and words to the user."""

import dataclasses
import os
import pathlib
import signal
import sys

STOPPED = (129, 130, 143)  # exit codes after SIGHUP, SIGINT, SIGTERM: told to stop, not failed
NOT_AGAIN = (0, 2, *STOPPED)  # exit codes after which starting again would be wrong

_line_begins = True  # of what was put; a progress bar has no end of line


class Mistake(Exception):
    """Something the user can mend: exit code 2."""


def say(text: str) -> None:
    put((b"" if _line_begins else b"\n") + f"mindglm: {text}\n".encode())


def note(log: pathlib.Path, text: str) -> None:
    """Add a line to a log, for `mindglm triage`: no log of a killed worker says how it ended."""
    with open(log, "a") as file:
        file.write(f"mindglm: {text}\n")


def put(data: bytes) -> None:
    """Write to standard output. A reader that has left (a lost ssh connection) must not end the job."""
    global _line_begins
    _line_begins = data.endswith(b"\n") if data else _line_begins
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@dataclasses.dataclass
class Process:
    """A worker (`rank`) or the scheduler (`rank` None) that msrun started."""

    pid: int
    rank: int | None
    log: pathlib.Path
    code: int | None = None  # negative: the signal that killed it

    @property
    def name(self) -> str:
        return "the scheduler" if self.rank is None else f"rank {self.rank}"

    @property
    def exit_code(self) -> int:
        return self.code if self.code >= 0 else 128 - self.code

    def how(self) -> str:
        if self.pid == 0:
            return "ended at once, with an exit code that only msrun has seen"
        if self.code >= 0:
            return f"exit code {self.code}"
        name = {int(known): known.name for known in signal.Signals}.get(-self.code, f"signal {-self.code}")
        hint = "; often the kernel's out-of-memory killer, see dmesg" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"


def children(parent: int) -> dict[int, int]:
    """{pid: session} of the processes whose parent is `parent`, also of those that have ended and were not asked."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                status = pathlib.Path("/proc", entry, "stat").read_text()
            except OSError:
                continue  # it has ended meanwhile
            _, ppid, _, session = status.rpartition(")")[2].split()[:4]
            if int(ppid) == parent:
                found[int(entry)] = int(session)
    return found


def process_environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty when it has ended."""
    try:
        text = pathlib.Path("/proc", str(pid), "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in text.split("\0") if line)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it was faster


def kill_session(pid: int) -> None:
    """SIGKILL for a worker and what it started (msrun gives each worker a session of its own)."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def modified(log: pathlib.Path) -> float:
    return log.stat().st_mtime if log.exists() else 0.0


def first_error(process: Process, most: int = 60) -> str:
    """A process's own error in its log: from its first traceback (or its message) on, else the last lines."""
    text = process.log.read_text(errors="replace") if process.log.exists() else ""
    lines = text.splitlines() or ["(the log is empty)"]
    said = [i for i, line in enumerate(lines) if line.startswith("mindglm: ")]
    if process.code == 2 and said:  # a mistake of the user: one message, no traceback
        return "\n".join(lines[said[-1]:said[-1] + most])
    starts = [i for i in said if lines[i].startswith("mindglm: rank ") and lines[i].endswith(" failed")]
    starts = starts or [i for i, line in enumerate(lines) if line.startswith("Traceback ")]
    return "\n".join(lines[starts[0]:starts[0] + most] if starts else lines[-20:])
