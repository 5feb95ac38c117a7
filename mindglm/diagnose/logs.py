"""The logs of an msrun job as data: which rank wrote which line, when, and where its Python errors stand.

A folder holds `scheduler.log` and `worker_<rank>.log`, perhaps one folder a node; what msrun or launch/supervise.py
said lies beside them (`msrun_<node>.log`, `launcher.log`, or any other .log or .out). Only the beginning and the end of
a long log are read: errors stand at its end.
"""

import datetime
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mindglm.errors import UserError

HEAD, TAIL = 1 << 16, 1 << 20  # bytes of a log that are read
LEVEL = re.compile(r"\[(DEBUG|INFO|WARNING|EVENT|TRACE)\]")
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[-T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,3})(?:\.(\d{3}))?)?")
WORKER = re.compile(r"worker_(\d+)\.log")
PID = re.compile(r"^\[[A-Z]+\] \w+\((\d+)[,:]|^mindglm: rank \d+ of \d+ is process (\d+)")
CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Stop\w*|Timeout\w*|Expired|Failed))"
                    r"(?::\s*(.*))?$")


@dataclass(frozen=True)
class Traceback:
    """A Python error with the errors it grew out of; lines are numbered from 0 within Log.lines."""

    start: int
    stop: int
    error: int
    """The line that names the first error of the chain."""
    kind: str
    """Class of the first error of the chain: the others only pass it on."""
    message: str
    place: str
    """`file:line in function` where the first error was raised; empty when unknown."""


@dataclass(frozen=True)
class Log:
    """One log file."""

    path: Path
    rank: int | None
    """None: the scheduler, or what the launcher said."""
    lines: tuple[str, ...]
    modified: float
    """Seconds since 1970 of the last write."""
    skipped: int = 0
    """Lines left out after the first `head` of `lines`."""
    head: int = 0

    def number(self, index: int) -> int:
        """The line's number in the file, from 1."""
        # The cut goes through a line, which both parts hold.
        return index + 1 if index < self.head or not self.head else index + self.skipped

    def time(self, index: int) -> float | None:
        """Seconds since 1970 (host clock, as UTC) that the line at `index` tells, or the nearest one before it."""
        for line in reversed(self.lines[max(0, index - 400):index + 1]):
            seconds = line_time(line)
            if seconds is not None:
                return seconds
        return None

    @cached_property
    def last_time(self) -> float | None:
        return self.time(len(self.lines) - 1)

    @cached_property
    def pid(self) -> int | None:
        """The process that wrote it, as MindSpore's lines tell."""
        for line in self.lines:
            match = PID.match(line)
            if match:
                return int(match[1] or match[2])
        return None

    @cached_property
    def tracebacks(self) -> tuple[Traceback, ...]:
        return tuple(_tracebacks(self.lines))


@dataclass(frozen=True)
class Job:
    """All logs of one start of a job."""

    folder: Path
    workers: tuple[Log, ...]
    """In the order of ranks."""
    scheduler: Log | None
    launcher: tuple[Log, ...]
    """What started them said."""


def line_time(line: str) -> float | None:
    """Seconds since 1970 of the first date and time in `line` (read as UTC), or None."""
    match = TIME.search(line)
    if match is None:
        return None
    *day, millis, micros = match.groups()
    try:
        moment = datetime.datetime(*map(int, day), tzinfo=datetime.timezone.utc)
    except ValueError:
        return None  # digits that look like a date
    return moment.timestamp() + int((millis or "0").ljust(3, "0")) / 1e3 + int(micros or 0) / 1e6


def is_quiet(line: str) -> bool:
    """Whether MindSpore or CANN mark the line as no error."""
    return LEVEL.match(line) is not None


def is_source(lines: tuple[str, ...], index: int) -> bool:
    """Whether the line is a frame of a traceback or the code under it: that names errors which have not happened."""
    code = lines[index].startswith("    ") and index > 0 and lines[index - 1].startswith('  File "')
    return code or lines[index].startswith('  File "')


def read(folder: Path) -> Job:
    """The job whose logs lie below `folder`. UserError when there are none; logs of earlier starts (attempt_N) are left
    out unless `folder` is one of those."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the --log_dir of an msrun job, with scheduler.log and "
                        "worker_0.log ... in it (launch/train_node.sh: output/msrun_log)")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".log", ".out") and path.is_file()
             and not any(part.startswith("attempt_") for part in path.relative_to(folder).parts)]
    workers = {}
    for path in files:
        match = WORKER.fullmatch(path.name)
        if match and path.stat().st_mtime >= workers.get(int(match[1]), (0.0,))[0]:
            workers[int(match[1])] = (path.stat().st_mtime, path)
    schedulers = [path for path in files if path.name == "scheduler.log"]
    if not workers and not schedulers:
        raise UserError(f"{folder}: no worker_<rank>.log and no scheduler.log in it or below it; expected the "
                        "--log_dir of an msrun job (launch/train_node.sh: output/msrun_log)")
    # A second scheduler.log is that of a node that shares an address with node 0: it says nothing.
    scheduler = max(schedulers, key=lambda path: path.stat().st_size, default=None)
    others = [path for path in files if not WORKER.fullmatch(path.name) and path.name != "scheduler.log"]
    return Job(folder, tuple(_log(workers[rank][1], rank) for rank in sorted(workers)),
               _log(scheduler, None) if scheduler else None, tuple(_log(path, None) for path in others))


def _log(path: Path, rank: int | None) -> Log:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= HEAD + TAIL:
            return Log(path, rank, _lines(file.read()), path.stat().st_mtime)
        first = file.read(HEAD)
        left, skipped = size - HEAD - TAIL, 0
        while left > 0:
            block = file.read(min(left, 1 << 24))
            skipped += block.count(b"\n")
            left -= len(block)
        head, tail = _lines(first), _lines(file.read())
    return Log(path, rank, head + tail, path.stat().st_mtime, skipped, len(head))


def _lines(data: bytes) -> tuple[str, ...]:
    # A progress bar rewrites its line with \r: what stands last is what was seen.
    return tuple(line.rstrip("\r").rpartition("\r")[2] for line in data.decode(errors="replace").split("\n"))


def _tracebacks(lines: tuple[str, ...]):
    index = 0
    while index < len(lines):
        # What Python ignores, at its exit for instance, has ended nothing.
        ignored = index > 0 and lines[index - 1].startswith("Exception ignored in")
        if ignored or not lines[index].startswith("Traceback (most recent call last)"):
            index += 1
            continue
        start, (stop, kind, message, place) = index, _one_traceback(lines, index)
        error = stop - 1
        # "The above exception ..." stands between two empty lines; the next one belongs to the same error.
        while any(line.startswith(CHAINED) for line in lines[stop:stop + 16]):
            following = next((i for i in range(stop, min(stop + 24, len(lines)))
                              if lines[i].startswith("Traceback (most recent call last)")), None)
            if following is None:
                break
            stop = _one_traceback(lines, following)[0]
        stop = _sections(lines, stop)
        yield Traceback(start, stop, error, kind, message, place)
        index = stop


def _sections(lines: tuple[str, ...], stop: int) -> int:
    """Index behind the sections that MindSpore adds under dashed lines to an error's message (Ascend Error Message, C++
    Call Stack)."""
    if not any(line.startswith("----") for line in lines[stop:stop + 12]):
        return stop
    end = min(stop + 80, len(lines))
    return next((i for i in range(stop, end) if re.match(r"\[[A-Z]+\] |mindglm: |Traceback ", lines[i])), end)


def _one_traceback(lines: tuple[str, ...], start: int) -> tuple[int, str, str, str]:
    """(index behind the error's own line, its class, its message, where it was raised)."""
    place = ""
    for index in range(start + 1, min(start + 200, len(lines))):
        line = lines[index]
        frame = re.match(r'\s+File "([^"]+)", line (\d+), in (.+)', line)
        if frame:
            place = f"{frame[1]}:{frame[2]} in {frame[3]}"
        elif line and not line.startswith((" ", "\t")):
            raised = RAISED.match(line)
            kind, message = (raised[1], raised[2] or "") if raised else line.partition(": ")[::2]
            return index + 1, kind.rpartition(".")[2], message, place
    return len(lines), "unknown error", "the traceback is cut", place
