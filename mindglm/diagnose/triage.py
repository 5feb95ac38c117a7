"""Which rank of a job failed first, why, and what to do: a conclusion from the logs that `logs` has read.

A rank whose log holds an error of its own comes before one that is gone without a word, and that before one that is
silent while others waited for it; ranks that only waited are never the first while there is another. Among ranks with
errors of their own the earliest one counts; what the launcher saw (exit codes, who died first) decides where it is
known. All ranks waiting and none silent means the network or a rank that came late.
"""

import dataclasses
import datetime
import re
import signal
from dataclasses import dataclass, field

from mindglm.diagnose import causes, logs
from mindglm.diagnose.logs import Job, Log

BURST = 60  # lines within which an error belongs to the same trouble as a message before it
MISTAKE = re.compile(r"^mindglm: (?:rank \d+ stops: )?(?P<text>.+)")
STEP = re.compile(r"^(mindglm: )?step \d+[/:]|step:\[ *\d+/ *\d+\], loss")  # a progress bar is also redrawn without one
PROGRESS = re.compile(r"^mindglm: (step \d+|exported |rank \d+ (failed|of )|start|resum|process|msrun )")
FIRST = re.compile(r"(?P<who>rank (?P<rank>\d+)|the scheduler) failed first \((?P<how>[^;)]+)")
CODE = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
OUT_OF_MEMORY = re.compile(r"out of memory: Killed process (\d+)", re.IGNORECASE)
TOLD = re.compile(r"leaves, told to by a signal|are asked to save and leave|received SIGINT")
STARTED = re.compile(r"Start worker process with rank id:(\d+)")
REGISTERED = re.compile(r"rank id: (\d+),.*is registered successfully.*expected node number: (\d+)")
LOST = re.compile(r"The node: (\d+) is timed out|worker (\d+) is the first one timed out")
SIGNALS = {entry.name: int(entry) for entry in signal.Signals}
NAMES = {number: name for name, number in SIGNALS.items()}
TOLD_TO_STOP = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
CRASHES = (signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS)


@dataclass(frozen=True)
class Evidence:
    """A line that the verdict rests on."""

    path: str
    line: int
    text: str


@dataclass(frozen=True)
class Verdict:
    """The conclusion."""

    cause: str
    """A key of causes.CAUSES."""
    rank: int | None
    """None: no rank's doing (the scheduler, the network, or unknown)."""
    who: str
    summary: str
    evidence: tuple[Evidence, ...]
    next: tuple[str, ...]
    others: dict[int, str] = field(default_factory=dict)
    """What the other ranks tell."""


@dataclass(frozen=True)
class Event:
    """What a log tells: a cause, and the line that says so."""

    key: str
    log: Log
    index: int
    detail: str
    """In a few words; may be empty."""
    ranks: tuple[int, ...] = ()
    """Ranks that it says it waited for."""

    @property
    def waits(self) -> bool:
        return causes.CAUSES[self.key].waits

    @property
    def time(self) -> float:
        """Seconds, comparable between logs of machines with one clock; where no line tells, the last write."""
        told = self.log.time(self.index)
        return told if told is not None else written(self.log)

    def evidence(self, lines: int = 1) -> tuple[Evidence, ...]:
        kept = [i for i in range(self.index, min(self.index + lines, len(self.log.lines))) if self.log.lines[i].strip()]
        return tuple(Evidence(str(self.log.path), self.log.number(i), self.log.lines[i].strip()) for i in kept)


@dataclass
class Exits:
    """How processes ended, as their launcher saw it."""

    first: int | None = None
    codes: dict[int, int] = field(default_factory=dict)
    """Rank -> exit code, negative for a signal."""
    nameless: list[tuple[int, Evidence]] = field(default_factory=list)
    """Exit codes of processes whose rank no log tells."""
    stopped: bool = False
    out_of_memory: set[int] = field(default_factory=set)
    """Ranks that the kernel killed, by its own log."""
    at: dict[int, Evidence] = field(default_factory=dict)


def of_folder(folder) -> Verdict:
    """The verdict on the logs below `folder`. UserError when there are none."""
    return of_job(logs.read(folder))


def of_job(job: Job) -> Verdict:
    """The verdict on `job`."""
    exits = _exits(job)
    told = {log.rank: event for log in job.workers if (event := _event(log, exits, job)) is not None}
    scheduler = _event(job.scheduler, exits, job) if job.scheduler else None
    own = [event for event in [*told.values(), scheduler] if event is not None and not event.waits]
    if own:
        return _own(job, exits, own, told)
    if exits.stopped:
        return _verdict(job, told, "stopped", None, "the job", "was told to stop; that is no failure", ())
    lost = _ranks_lost(job)
    if len(lost) == 1 and len(exits.nameless) == 1 and not exits.codes:
        exits.first = next(iter(lost))
        exits.codes[exits.first], exits.at[exits.first] = exits.nameless[0]
    waiting = {rank: event for rank, event in told.items() if event.waits}
    killed = [rank for rank, code in exits.codes.items() if rank not in waiting and code]
    if killed:
        return _killed(job, exits, told, exits.first if exits.first in killed else min(killed))
    silent = [log.rank for log in job.workers if log.rank not in told]
    if scheduler is not None and scheduler.key == "cluster_incomplete" or _never_met(waiting):
        return _incomplete(job, told, scheduler)
    # A rank that hangs still sends heartbeats: who is lost only after others gave up was ended by the launcher.
    given_up = min((event.time for event in waiting.values()), default=float("inf"))
    gone = {rank: event for rank, (event, time) in lost.items() if rank not in waiting and time < given_up + 2}
    if gone:
        return _gone(job, told, gone, exits)
    if waiting and silent:
        return _silent(job, told, waiting, silent)
    if waiting:
        return _all_wait(job, told, waiting)
    return _nothing(job, scheduler)


# ---- what a log tells ----


def written(log: Log) -> float:
    """The log's last write as its lines would tell it: their times are those of the local clock."""
    moment = datetime.datetime.fromtimestamp(log.modified)
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp()


def _event(log: Log, exits: Exits, job: Job) -> Event | None:
    """What ended the process of `log`, by its own words."""
    own, wait = None, None
    inside = {index for block in log.tracebacks for index in range(block.start, block.stop)}
    found = [Event(told[0], log, index, told[1], _ranks(told[2])) for index, line in enumerate(log.lines)
             if (not logs.is_quiet(line) or "Kill this process" in line) and (told := causes.of_line(line))
             and not logs.is_source(log.lines, index)]
    for block in log.tracebacks:
        within = [event for event in found if block.start <= event.index < block.stop]
        error = f"{block.kind}: {block.message}" if block.message else block.kind
        detail = f"{error} ({block.place})" if block.place else error
        named = next((event for event in within if not event.waits), None)
        # A code or a word inside a traceback says what kind of error it is; the traceback says where.
        if named is not None:
            found = [event for event in found if event.waits or event not in within]
            found.append(Event(named.key, log, block.error, f"{named.detail}; {detail}" if named.detail else detail))
        elif not within and block.kind != "KeyboardInterrupt":
            found.append(Event("exception", log, block.error, detail))
    found = _after_the_last_step(found, log, inside)
    for event in sorted(found, key=lambda event: (event.index, event.index not in inside)):
        if event.waits:
            # The line that names the rank it waited for tells more than the first one.
            wait = event if wait is None or event.ranks and not wait.ranks else wait
        elif own is None or own.index not in inside and event.index in inside and _apart(own, event):
            own = event  # what the process went on after is not what ended it
    mistake = _mistake(log, exits, job)
    if mistake is not None and own is None:
        return mistake
    if own is None or wait is not None and _apart(wait, own):
        return wait
    # Lines of the device or of C++ come before the Python error that they lead to, which says where.
    raised = next((event for event in found if not event.waits and event.index in inside
                   and own.index < event.index and not _apart(own, event)), None)
    return dataclasses.replace(own, detail=raised.detail) if raised is not None and raised.detail else own


def _apart(event: Event, later: Event) -> bool:
    """Whether `later` stands too far behind `event` to belong to the same trouble."""
    return later.log.number(later.index) > event.log.number(event.index) + BURST


def _after_the_last_step(found: list[Event], log: Log, inside: set[int]) -> list[Event]:
    """Without what the process went on after: it made steps between that and a later error."""
    end = max((event.index for event in found if event.waits or event.index in inside), default=0)
    step = next((index for index in range(end, -1, -1) if STEP.search(log.lines[index])), -1) if found else -1
    return [event for event in found if event.index >= step]


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def _mistake(log: Log, exits: Exits, job: Job) -> Event | None:
    """The message by which mindglm ended the process (exit code 2), if that is how it ended."""
    said = [i for i, line in enumerate(log.lines) if line.startswith("mindglm: ") and not logs.is_quiet(line)]
    if not said or PROGRESS.match(log.lines[said[-1]]):
        return None
    index = said[-1]
    text = log.lines[index]
    # A wrong recipe also ends the scheduler, which runs the same command.
    sure = (" stops: " in text or exits.codes.get(log.rank) == 2
            or job.scheduler is not None and log is not job.scheduler and text in job.scheduler.lines)
    if not sure:
        return None
    told = causes.of_line(text)  # what is known by name is called so, a full disk for instance
    return Event(told[0] if told else "mistake", log, index, MISTAKE.match(text)["text"])


def _exits(job: Job) -> Exits:
    exits = Exits()
    pids = {log.pid: log.rank for log in job.workers if log.pid is not None}
    unknown = [log.rank for log in job.workers if log.pid is None]
    for log in job.launcher:
        for index, line in enumerate(log.lines):
            evidence = Evidence(str(log.path), log.number(index), line.strip())
            first, code, eaten = FIRST.search(line), CODE.search(line), OUT_OF_MEMORY.search(line)
            if eaten and int(eaten[1]) in pids:
                exits.out_of_memory.add(pids[int(eaten[1])])
                exits.codes[pids[int(eaten[1])]], exits.at[pids[int(eaten[1])]] = -9, evidence
            if first and first["rank"]:
                exits.first = int(first["rank"])
                exits.codes[exits.first], exits.at[exits.first] = _code(first["how"]), evidence
            elif code:
                rank = pids.get(int(code[1]), unknown[0] if len(unknown) == 1 else None)
                if rank is None:
                    exits.nameless.append((int(code[2]), evidence))
                else:
                    exits.codes[rank], exits.first = int(code[2]), rank
                    exits.at.setdefault(rank, evidence)
            exits.stopped = exits.stopped or TOLD.search(line) is not None
    return exits


def _code(how: str) -> int:
    """-9 of "killed by SIGKILL", 3 of "exit code 3"."""
    killed = how.startswith("killed by ")
    name, number = re.search(r"SIG\w+", how), re.search(r"\d+", how)
    if killed and name and name[0] in SIGNALS:
        return -SIGNALS[name[0]]
    if number is None:
        return -signal.SIGKILL if killed else 1
    return -int(number[0]) if killed else int(number[0])


def _ranks_lost(job: Job) -> dict[int, tuple[Event, float]]:
    """Ranks that the scheduler lost, the first one first, with the line and its time."""
    lost, first = {}, None
    for index, line in enumerate(job.scheduler.lines if job.scheduler else ()):
        match = LOST.search(line)
        if match:
            event = Event("node_lost", job.scheduler, index, "")
            rank = int(match[1] or match[2])
            first = rank if match[2] else first
            lost.setdefault(rank, (event, event.time))
    return dict(sorted(lost.items(), key=lambda item: (item[0] != first, item[1][1])))


# ---- conclusions ----


def _own(job: Job, exits: Exits, own: list[Event], told: dict[int, Event]) -> Verdict:
    """A process that failed by itself: the one the launcher saw first, else the earliest."""
    first = min(own, key=lambda event: (event.log.rank is None or event.log.rank != exits.first, event.time,
                                        event.log.rank if event.log.rank is not None else -1))
    alike = [event for event in own if event.key == first.key and event is not first]
    who = "the scheduler" if first.log.rank is None else f"rank {first.log.rank}"
    summary = f"failed first: {first.detail}" if first.detail else "failed first"
    if first.key == "mistake":
        summary = f"stopped: {first.detail}"
    if alike:
        summary = f"{summary} ({len(alike)} other process{'es' * (len(alike) > 1)} failed the same way)"
    rank, evidence = first.log.rank, first.evidence(12 if first.key == "mistake" else 3)
    if rank in exits.at:
        evidence = (*evidence, exits.at[rank])
    return _verdict(job, told, first.key, rank, who, summary, evidence)


def _killed(job: Job, exits: Exits, told: dict[int, Event], rank: int) -> Verdict:
    code = exits.codes[rank]
    number = code - 128 if 128 < code <= 128 + signal.SIGRTMAX else -code  # a shell adds 128 to a signal
    name = NAMES.get(number, f"signal {number}")
    if number in TOLD_TO_STOP:
        return _verdict(job, told, "stopped", rank, f"rank {rank}", "was told to stop", (exits.at[rank],))
    if number in CRASHES:
        return _verdict(job, told, "crash", rank, f"rank {rank}", f"crashed ({name})",
                        (exits.at[rank], *_last_words(job, rank)))
    if rank in exits.out_of_memory:
        return _verdict(job, told, "host_memory", rank, f"rank {rank}",
                        "was killed by the kernel's out-of-memory killer", (exits.at[rank], *_last_words(job, rank)))
    if number > 0:
        return _verdict(job, told, "killed", rank, f"rank {rank}", f"was killed ({name})",
                        (exits.at[rank], *_last_words(job, rank)))
    return _verdict(job, told, "ended_early", rank, f"rank {rank}", f"ended with exit code {code} and without an error",
                    (exits.at[rank], *_last_words(job, rank)))


def _gone(job: Job, told: dict[int, Event], gone: dict[int, Event], exits: Exits) -> Verdict:
    """Processes that the scheduler lost. It looks every few seconds: of those lost at once none was first for sure."""
    rank, event = next(iter(gone.items()))
    at_once = sorted(other for other, its in gone.items() if its.time < event.time + 1)
    codes = tuple(evidence for _, evidence in exits.nameless)
    if len(at_once) > 1:
        return _verdict(job, told, "vanished", None, _names(at_once),
                        "are gone without a word, lost at the same moment: which one went first the launcher knows",
                        event.evidence() + codes)
    return _verdict(job, told, "vanished", rank, f"rank {rank}", "is gone without a word: the scheduler lost it",
                    event.evidence() + codes + _last_words(job, rank))


def _never_met(waiting: dict[int, Event]) -> bool:
    return bool(waiting) and all(event.key == "no_scheduler" for event in waiting.values())


def _incomplete(job: Job, told: dict[int, Event], scheduler: Event | None) -> Verdict:
    """The workers never became a job."""
    if scheduler is None or job.scheduler is None:
        event = next(iter(told.values()))
        return _verdict(job, told, "no_scheduler", None, "no rank", f"reaches the scheduler{_at(event)}",
                        event.evidence(), "; there is no scheduler.log: msrun found --master_addr on no interface of "
                        "its machine" * (job.scheduler is None))
    registered, expected = set(), len(job.workers)
    for line in job.scheduler.lines:
        match = REGISTERED.search(line)
        if match:
            registered.add(int(match[1]))
            expected = int(match[2])
    missing = sorted(set(range(expected)) - registered)
    if not registered:
        return _verdict(job, told, "cluster_incomplete", None, "the scheduler", "gave up: not all workers came",
                        scheduler.evidence())
    return _verdict(job, told, "cluster_incomplete", missing[0] if missing else None, _names(missing) or "no rank",
                    f"never came to the scheduler; {len(registered)} of {expected} did", scheduler.evidence(2))


def _silent(job: Job, told: dict[int, Event], waiting: dict[int, Event], silent: list[int]) -> Verdict:
    """Some waited, others say nothing: one that is waited for, else the one that fell silent first."""
    named = [rank for event in waiting.values() for rank in event.ranks if rank in silent]
    logs_of = {log.rank: log for log in job.workers}
    rank = min(named or silent, key=lambda rank: (logs_of[rank].last_time or written(logs_of[rank]), rank))
    first = min(waiting.values(), key=lambda event: event.time)
    return _verdict(job, told, "hangs", rank, f"rank {rank}",
                    f"says nothing while {_names(sorted(waiting))} waited for it",
                    first.evidence() + _last_words(job, rank))


def _all_wait(job: Job, told: dict[int, Event], waiting: dict[int, Event]) -> Verdict:
    """Everybody waited. Awaited ranks that have no log here are the suspects; else the last one to come, or nobody."""
    ordered = sorted(waiting.values(), key=lambda event: event.time)
    first, last = ordered[0], ordered[-1]
    absent = sorted({rank for event in ordered for rank in event.ranks} - {log.rank for log in job.workers})
    if absent:
        return _verdict(job, told, first.key, absent[0], _names(absent),
                        "is what the others waited for, and its log is not here", first.evidence())
    spread = last.time - first.time
    if spread > 120 and last.log.rank is not None:
        return _verdict(job, told, last.key, last.log.rank, f"rank {last.log.rank}",
                        f"came {spread:.0f} s after the first one gave up: it is slow, or was held up",
                        first.evidence() + last.evidence())
    return _verdict(job, told, first.key, None, "no rank",
                    f"has an error of its own: all {len(ordered)} waited, and gave up within {spread:.0f} s",
                    first.evidence())


def _nothing(job: Job, scheduler: Event | None) -> Verdict:
    started = [log for log in job.launcher if any(STARTED.search(line) for line in log.lines)]
    if job.scheduler is None and started and not any("".join(log.lines).strip() for log in job.workers):
        return _verdict(job, {}, "no_scheduler", None, "no rank",
                        "has said anything, and msrun started no scheduler here", ())
    if scheduler is not None:
        return _verdict(job, {}, "vanished", None, "a worker", "is gone, and no log says which one went first",
                        scheduler.evidence())
    return _verdict(job, {}, "unknown", None, "no rank", "has an error in its log", ())


def _verdict(job: Job, told: dict[int, Event], key: str, rank: int | None, who: str, summary: str,
             evidence: tuple[Evidence, ...], tail: str = "") -> Verdict:
    others = {other: _in_a_word(event) for other, event in told.items() if other != rank}
    return Verdict(key, rank, who, summary + tail, evidence, causes.CAUSES[key].next, others)


def _in_a_word(event: Event) -> str:
    title = causes.CAUSES[event.key].title
    return f"{title} ({event.detail})" if event.detail else title


def _at(event: Event) -> str:
    return f" at {event.detail}" if event.detail else ""


def _names(ranks: list[int]) -> str:
    if len(ranks) > 8:
        return f"{len(ranks)} ranks ({', '.join(map(str, ranks[:8]))}, ...)"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else ""


def _last_words(job: Job, rank: int) -> tuple[Evidence, ...]:
    """The last two lines of a rank's log."""
    log = next((log for log in job.workers if log.rank == rank), None)
    if log is None:
        return ()
    kept = [i for i, line in enumerate(log.lines) if line.strip() and "WARNING" not in line][-2:]
    return tuple(Evidence(str(log.path), log.number(i), log.lines[i].strip()) for i in kept)
