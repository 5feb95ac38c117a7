"""The logs of an msrun job as data: which rank wrote which line, when, and where its Python errors stand.

A folder holds `scheduler.log` and `worker_<rank>.log`, perhaps one folder a node; what msrun or launch/supervise.py
said lies beside them (`msrun_<node>.log`, `launcher.log`, or any other .log or .out). The beginning and the end of a
long log are read whole; of what lies between them only errors with a few lines before and behind.
"""

import datetime
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from mindglm.diagnose import causes
from mindglm.errors import UserError

HEAD, TAIL = 1 << 16, 1 << 20  # bytes of a long log that are read whole
LINE, PIECE = 4000, 1 << 20  # bytes of a line that are kept; bytes of a longer one that are looked at together
BEFORE, BEHIND, TRACE_LINES = 8, 8, 200  # lines kept before an error in the middle, from it on, and of a traceback
KEPT = 1 << 15  # lines kept of a middle that is full of errors: its last ones
TRACE, QUIET = b"Traceback (most recent call last)", (b"mindglm: step ", b"[WARNING]", b"[INFO]")
HINT = re.compile(causes.HINT.pattern.encode())
LEVEL = re.compile(r"\[(DEBUG|INFO|WARNING|EVENT|TRACE)\]")
SURVIVED = re.compile(r"^mindglm: .*(\. Training goes on; |; its lines wait in memory$)")
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
    numbers: Sequence[int]
    """Of `lines` in the file, from 1."""
    modified: float
    """Seconds since 1970 of the last write."""

    def number(self, index: int) -> int:
        """The line's number in the file, from 1."""
        return self.numbers[index]

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
    """Whether the line is marked as no error: by MindSpore's and CANN's level, by mindglm's words."""
    return LEVEL.match(line) is not None or SURVIVED.match(line) is not None


def is_source(lines: tuple[str, ...], index: int) -> bool:
    """Whether the line is a frame of a traceback or the code under it: that names errors which have not happened."""
    code = lines[index].startswith("    ") and index > 0 and lines[index - 1].startswith('  File "')
    return code or lines[index].startswith('  File "')


def read(folder: Path) -> Job:
    """The job whose logs lie below `folder`. UserError when there are none; logs of earlier starts (attempt_N) are left
    out unless `folder` is one of those."""
    with _readable(folder):
        return _job(folder)


def _job(folder: Path) -> Job:
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
    with _readable(path), open(path, "rb") as file:
        status = path.stat()
        if status.st_size > HEAD + TAIL:
            return Log(path, rank, *_long(file, status.st_size), status.st_mtime)
        lines = _lines(file.read())
        return Log(path, rank, lines, range(1, len(lines) + 1), status.st_mtime)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}; the log that cannot be read may be the one that "
                        "tells: make it readable, or triage as the user whose job it was") from error


def _long(file: BinaryIO, size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(lines, their numbers) of a log of `size` bytes without most of its middle."""
    data = file.read(HEAD) + file.readline(PIECE)
    head, number, left = _lines(data.removesuffix(b"\n")), 1 + data.count(b"\n"), size - TAIL - len(data)
    before, kept, keep = deque(maxlen=BEFORE), deque(maxlen=KEPT), 0
    while left > 0 and (piece := file.readline(PIECE)):
        left -= len(piece)
        keep = max(keep - 1, _lines_told(piece))
        if keep:
            kept.extend((at, _line(passed)) for at, passed in [*before, (number, piece)])
            before.clear()
        else:
            before.append((number, piece))
        number += piece.endswith(b"\n")
    end = _lines(file.read())
    lines = *head, *(line for _, line in kept), *end
    return lines, (*range(1, 1 + len(head)), *(at for at, _ in kept), *range(number, number + len(end)))


def _lines_told(line: bytes) -> int:
    """How many lines from this one on tell of an error; 0 where it tells of none."""
    if line.startswith(TRACE):
        return TRACE_LINES
    if line.startswith(QUIET) or b" step:[" in line or HINT.search(line) is None:
        return 0
    text = _line(line)
    return BEHIND if causes.of_line(text) and not is_quiet(text) else 0


def _lines(data: bytes) -> tuple[str, ...]:
    return tuple(map(_line, data.split(b"\n")))


def _line(data: bytes) -> str:
    # A progress bar rewrites its line with \r: what stands last is what was seen.
    return data.rstrip(b"\r\n").rpartition(b"\r")[2][:LINE].decode(errors="replace")


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
