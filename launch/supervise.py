"""One node's share of a distributed job: msrun starts its processes, this program watches them and ends them.

    python launch/supervise.py --workers 2 -- python -m mindglm train RECIPE parallel_config.data_parallel=2
    python launch/supervise.py --train RECIPE [key=value ...]       workers: as many as the recipe's layout needs

Why msrun is only asked to start (--join=False): its own waiting (MindSpore 2.9) kills the other workers before anybody
can see which one died first, then waits for its scheduler as long as MS_NODE_TIMEOUT, and leaves its workers running
when it gets a SIGTERM. This program becomes the parent of what msrun leaves behind, so it has every exit code at once.

What it promises (tests/launch):
- A worker that dies ends the job at once; the first failing rank, its exit code and its own error are printed last.
- SIGTERM, SIGINT and SIGHUP make the workers save and leave together; a second signal kills them.
- Nothing that was started is left behind, whichever way the job ends.
Exit code: 0 done; 2 a mistake the user can mend; 128 + signal when stopped; else that of the first worker to fail.
Only the standard library is needed.
"""

import argparse
import ctypes
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from processes import (NOT_AGAIN, STOPPED, Mistake, Process, children, first_error, kill_session, modified, note,
                       process_environment, put, say, send)

TICK = 0.1  # seconds between two looks at the processes
SCHEDULER_SECONDS = 20  # how long the scheduler may take to leave after the last worker
SET_CHILD_SUBREAPER = 36  # prctl


class Requests:
    """What this program was asked for: signals, and in a cluster the words on its standard input (the leash)."""

    def __init__(self, leash: bool):
        self.signals: list[int] = []
        self.kill = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda received, _: self._add(received))
        if leash:
            threading.Thread(target=self._read, daemon=True).start()

    def _add(self, number: int) -> None:
        self.kill = self.kill or bool(self.signals)
        self.signals.append(number)

    def _read(self) -> None:
        # The end of the input means that the program that started us is gone: the job stops in good order.
        for line in sys.stdin:
            if line.strip() == "kill":
                self.kill = True
            if line.strip() in ("kill", "term"):
                self.signals.append(signal.SIGTERM)
        if not self.signals:
            self.signals.append(signal.SIGTERM)


class Node:
    """The processes of one start of a job on this node."""

    def __init__(self, args: argparse.Namespace, command: list[str], requests: Requests):
        self.args, self.command, self.requests = args, command, requests
        self.logs = pathlib.Path(args.log_dir)
        self.workers: list[Process] = []
        self.scheduler: Process | None = None
        self._echoed: dict[pathlib.Path, int] = {}

    def run(self) -> int:
        """Start, watch and clean up; the job's exit code."""
        try:
            self._start()
            return self._watch()
        finally:
            self._end_all()
            self._echo()

    # ---- starting ----

    def _start(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        for log in [*map(self.log, self.ranks), self.logs / "scheduler.log"]:
            if log.name.startswith("worker") or self.args.node_rank == 0:
                log.unlink(missing_ok=True)
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with open(self.logs / f"msrun_{self.args.node_rank}.log", "w+") as output:
            starter = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                       start_new_session=True, env=environment(self.args))
            # Not before msrun has ended: only then are the children that are not msrun the job's processes.
            while starter.poll() is None and not self.requests.kill:
                time.sleep(TICK)
            if starter.returncode:
                output.seek(0)
                raise Mistake(f"msrun did not start the job (exit code {starter.returncode}):\n{output.read()}")
        if not self.requests.kill:
            self._adopt()

    @property
    def ranks(self) -> range:
        first = self.args.node_rank * self.args.local_workers
        return range(first, first + self.args.local_workers)

    def log(self, rank: int) -> pathlib.Path:
        return self.logs / f"worker_{rank}.log"

    def _adopt(self) -> None:
        """Find the processes that msrun left to us. Its workers lead their sessions, what they have started does not.
        A worker that has ended already has lost its environment, not its place: they start by rank."""
        ended = []
        for pid, session in sorted(children(os.getpid()).items()):
            variables = process_environment(pid)
            if session == pid and variables:
                rank = int(variables["RANK_ID"])
                self.workers.append(Process(pid, rank, self.log(rank)))
            elif session == pid:
                ended.append(pid)
            elif self.scheduler is None and variables.get("MS_ROLE", "MS_SCHED") == "MS_SCHED":
                self.scheduler = Process(pid, None, self.logs / "scheduler.log")
        for rank in sorted(set(self.ranks) - {worker.rank for worker in self.workers}):
            # Where there is no process either, msrun itself took the exit code.
            lost = Process(ended.pop(0), rank, self.log(rank)) if ended else Process(0, rank, self.log(rank), code=1)
            self.workers.append(lost)
        self.workers.sort(key=lambda worker: worker.rank)
        if self.scheduler is None and self.args.node_rank == 0:
            self.scheduler = Process(0, None, self.logs / "scheduler.log", code=1)
            if not self.scheduler.log.exists():
                raise Mistake(f"msrun started no scheduler: --master-addr {self.args.master_addr} is no address of "
                              "this machine, which is node 0")

    # ---- watching ----

    def _watch(self) -> int:
        result = deadline = scheduler_deadline = None  # set once the job is on its way out
        gone = SchedulerGone(self.args) if self.args.node_rank > 0 and not self.args.leash else None
        if not self.workers:  # told to go before there were any
            return 128 + self.requests.signals[0]
        while True:
            self._reap()
            self._echo()
            now = time.monotonic()
            failed = self._first_failed()
            fault = failed is not None and failed.exit_code not in STOPPED
            if fault and (result is None or self.requests.signals and not self.requests.kill):
                return self._report(failed)  # also who was asked to save and leave, and could not
            if result is None:
                if failed is not None:
                    say(f"{failed.name} leaves, told to by a signal ({failed.how()}); waiting for the others")
                    result, deadline = failed.exit_code, now + SCHEDULER_SECONDS
                elif self.requests.signals:
                    result, deadline = 128 + self.requests.signals[0], now + self.args.grace
                    self._ask()
                elif gone is not None and gone():
                    say(f"the scheduler at {self.args.master_addr}:{self.args.master_port} is gone: node 0 has ended")
                    result, deadline = 1, now + 8
            else:
                deadline = min(deadline, now + self._patience())
            if result is not None and (self.requests.kill or now > deadline):
                return result
            if all(worker.code is not None for worker in self.workers):
                if all(worker.code == 0 for worker in self.workers):
                    result = 0  # whatever was asked: the job is done
                if self.scheduler is None or self.scheduler.code is not None:
                    if self.scheduler and self.scheduler.code and result and not self.requests.signals:
                        return self._report(self.scheduler)  # MindSpore signals its workers when the scheduler gives up
                    return result
                deadline = min(deadline or float("inf"), now + SCHEDULER_SECONDS)
            elif self.scheduler is not None and self.scheduler.code:
                scheduler_deadline = scheduler_deadline or now + 2  # it may have died of a worker that is about to
                if now > scheduler_deadline and result is None:
                    return self._report(self.scheduler)
            time.sleep(TICK)

    def _reap(self) -> None:
        """Take the exit codes of all that have ended, and note in which order (those of one tick: by their logs)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
                if process.pid == pid:
                    process.code = os.waitstatus_to_exitcode(status)

    def _first_failed(self) -> Process | None:
        """The worker that failed: the first one, because it ends the watch. Of several within one tick, the one whose
        log stopped growing first: the others fail for want of it."""
        failed = [worker for worker in self.workers if worker.code]
        return min(failed, key=lambda worker: (worker.exit_code in STOPPED, modified(worker.log)), default=None)

    def _patience(self) -> float:
        """Seconds that the workers on their way out still get. They leave together or not at all: for one that was
        killed, or that ended in another way than the others will, the rest would wait in a collective."""
        codes = [worker.code for worker in self.workers if worker.code is not None]
        if any(code < 0 or code not in (0, *STOPPED) for code in codes):
            return 5
        return SCHEDULER_SECONDS if codes else self.args.grace

    def _ask(self) -> None:
        if self.requests.kill:
            return
        name = signal.Signals(self.requests.signals[0]).name
        say(f"{name}: the workers are asked to save and leave (up to {self.args.grace:.0f} s; again: killed at once)")
        for worker in self.workers:
            if worker.code is None:
                os.kill(worker.pid, signal.SIGTERM)

    def _report(self, failed: Process) -> int:
        self._echo()
        self._end_all()
        if self.args.leash:
            say(f"died {time.time():.3f} {failed.name}")
        told = f"{failed.name} failed first ({failed.how()}); all others were ended. From {failed.log}:"
        note(self.logs / f"msrun_{self.args.node_rank}.log", told)
        say(told)
        put(first_error(failed).encode() + b"\n")
        return failed.exit_code

    def _echo(self) -> None:
        """Copy what is new in the logs of the ranks that --tail names to standard output."""
        for rank in self.args.tail:
            log = self.log(rank)
            if rank in self.ranks and log.exists():
                with open(log, "rb") as file:
                    file.seek(self._echoed.get(log, 0))
                    put(file.read())
                    self._echoed[log] = file.tell()

    # ---- ending ----

    def _end_all(self) -> None:
        """Kill whatever is left: workers with their sessions, the scheduler, and processes that these left behind."""
        for worker in self.workers:
            if worker.code is None:
                kill_session(worker.pid)
        end = time.monotonic() + 5
        while (left := children(os.getpid())) and time.monotonic() < end:
            for pid in left:
                send(pid, signal.SIGKILL)
            self._reap()
            time.sleep(TICK / 5)


class SchedulerGone:
    """Whether the scheduler of another node does not answer any more (asked every few seconds, believed twice)."""

    def __init__(self, args: argparse.Namespace):
        self._address = (args.master_addr, args.master_port)
        self._next, self._seen, self._refused = 0.0, False, 0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 3
            try:
                socket.create_connection(self._address, timeout=2).close()
                self._seen, self._refused = True, 0
            except OSError:
                self._refused = self._refused + 1
        return self._seen and self._refused >= 2


# ---- the job as it was asked for ----


def environment(args: argparse.Namespace) -> dict[str, str]:
    """The workers' environment: ours, and what mindglm and HCCL need to know of this node."""
    return {**os.environ, **extra_environment(args)}


def extra_environment(args: argparse.Namespace) -> dict[str, str]:
    extra = {"MINDGLM_NODE_RANK": str(args.node_rank)}
    if "GLOG_v" not in os.environ:
        extra["GLOG_v"] = "3"  # MindSpore's own warnings would bury the progress
    chosen = any(name in os.environ for name in ("HCCL_IF_IP", "HCCL_SOCKET_IFNAME"))
    if args.nic != "auto":
        extra["HCCL_SOCKET_IFNAME"] = f"={args.nic}"  # with "=": this very one, not all that begin so
    elif args.workers > args.local_workers and not chosen:
        nic = interface_towards(args.master_addr)
        if nic is not None:
            extra["HCCL_SOCKET_IFNAME"] = f"={nic}"
    return extra


def interface_towards(address: str) -> str | None:
    """Name of the network interface that reaches `address`, or that carries it; None for loopback or when unknown."""
    try:
        ip = socket.gethostbyname(address)
        for interface in json.loads(subprocess.check_output(["ip", "-j", "addr"])):
            if ip in [info.get("local") for info in interface["addr_info"]]:
                return None if interface["ifname"] == "lo" else interface["ifname"]
        return json.loads(subprocess.check_output(["ip", "-j", "route", "get", ip]))[0]["dev"]
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError, IndexError):
        return None  # HCCL then chooses by its own order, which --nic or HCCL_SOCKET_IFNAME can replace


def msrun_command(args: argparse.Namespace, command: list[str]) -> list[str]:
    bind = args.bind_core
    if bind == "auto":  # a core each: a quarter to a third faster on CPU; sharing cores by force is slower
        bind = len(os.sched_getaffinity(0)) >= args.local_workers
    return ["msrun", f"--worker_num={args.workers}", f"--local_worker_num={args.local_workers}",
            f"--master_addr={args.master_addr}", f"--master_port={args.master_port}", f"--node_rank={args.node_rank}",
            f"--log_dir={args.log_dir}", "--join=False", f"--cluster_time_out={args.cluster_time_out}",
            f"--bind_core={bind}", *command]


def recipe_workers(arguments: list[str]) -> int:
    """Number of processes that a recipe's layout takes. Mistake with the recipe's own message when it is wrong."""
    from mindglm import recipe
    from mindglm.errors import UserError

    try:
        layout = recipe.load(arguments[0], arguments[1:]).parallel_config
    except UserError as error:
        raise Mistake(str(error)) from error
    return layout.data_parallel * layout.model_parallel * layout.context_parallel * layout.pipeline_stage


def worker_command(args: argparse.Namespace) -> list[str]:
    """The command of one worker; fills in args.workers from the recipe."""
    if not args.command:
        raise Mistake(f"nothing to run: expected {'a RECIPE' if args.train else 'a command behind --'}")
    if not args.train:
        return args.command[1:] if args.command[0] == "--" else args.command
    needed = recipe_workers(args.command)
    if args.workers not in (None, needed):
        raise Mistake(f"--workers is {args.workers}, but parallel_config of {args.command[0]} makes {needed} "
                      "processes; leave --workers out or change parallel_config")
    args.workers = needed
    return ["python", "-m", "mindglm", "train", *args.command]


def complete(args: argparse.Namespace) -> None:
    """Fill in what was left open and refuse what cannot be. Raises Mistake."""
    if args.workers is None or args.workers < 1:
        raise Mistake(f"--workers is {args.workers}; expected the number of processes of the whole job, 1 or more")
    if args.workers % args.nodes:
        raise Mistake(f"{args.workers} workers cannot be shared evenly by {args.nodes} nodes; msrun numbers the ranks "
                      "by node, so every node has as many")
    args.local_workers = args.workers // args.nodes
    if not 0 <= args.node_rank < args.nodes:
        raise Mistake(f"--node-rank is {args.node_rank}; expected 0 to {args.nodes - 1} for --nodes {args.nodes}")
    if args.nodes > 1 and args.master_port == 0:
        raise Mistake("--master-port must be given for several nodes, the same on each")
    if args.nodes > 1 and args.max_restarts and not args.leash:
        raise Mistake("--max-restarts works on one node, or on many by launch/train_cluster.sh, which starts them all")
    if shutil.which("msrun") is None:
        raise Mistake(f"no msrun in PATH={os.environ.get('PATH')}; activate the environment that has MindSpore, or set "
                      "MINDGLM_VENV to its folder")
    args.tail = [int(rank) for rank in args.tail.split(",") if rank]


def port_of(wanted: int) -> int:
    """`wanted`, or a free port for 0. Mistake when another process listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted))
        except OSError as error:
            raise Mistake(f"port {wanted} cannot be used on this node ({error.strerror}), perhaps by another job; "
                          "give another --master-port") from error
        return probe.getsockname()[1]


def keep_logs(args: argparse.Namespace, attempt: int) -> None:
    """Move this node's logs of a failed attempt to LOG_DIR/attempt_<n>: the next one writes its own."""
    logs = pathlib.Path(args.log_dir)
    folder = logs / f"attempt_{attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    ranks = range(args.node_rank * args.local_workers, (args.node_rank + 1) * args.local_workers)
    names = [f"msrun_{args.node_rank}.log", *(f"worker_{rank}.log" for rank in ranks)]
    for name in names + (["scheduler.log"] if args.node_rank == 0 else []):
        if (logs / name).exists():
            (logs / name).replace(folder / name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="supervise.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--train", action="store_true", help="the command is: python -m mindglm train RECIPE [key=value ...]")
    add("--workers", type=int, metavar="N", help="processes of the whole job (with --train: what the recipe needs)")
    add("--nodes", type=int, default=1, metavar="N")
    add("--node-rank", type=int, default=0, metavar="R", help="this node's number; node 0 has the scheduler")
    add("--master-addr", default="127.0.0.1", metavar="ADDRESS", help="of node 0, as the others reach it")
    add("--master-port", type=int, default=0, metavar="PORT", help="of the scheduler; 0 (one node): a free one")
    add("--log-dir", default="output/msrun_log", metavar="DIR")
    add("--nic", default="auto", help="network interface of HCCL's first contact; auto: the one towards node 0")
    add("--tail", default="0", metavar="RANKS", help="ranks whose logs are copied to the console, e.g. 0,7")
    add("--grace", type=float, default=300, metavar="SECONDS", help="for the workers to save after a signal")
    add("--cluster-time-out", type=int, default=600, metavar="SECONDS", help="for all workers to find together")
    add("--bind-core", default="auto", choices=["auto", "True", "False"])
    add("--max-restarts", type=int, default=0, metavar="N", help="start again from the last checkpoint after a fault")
    add("--attempt", type=int, default=0, help=argparse.SUPPRESS)  # set by cluster.py, which restarts all nodes
    add("--leash", action="store_true", help=argparse.SUPPRESS)  # by cluster.py: standard input says when to stop
    add("--dry-run", action="store_true", help="print what would be run")
    add("command", nargs=argparse.REMAINDER, metavar="...")
    return parser


def run(args: argparse.Namespace) -> int:
    """The job with its restarts; the exit code."""
    command = worker_command(args)
    complete(args)
    if args.dry_run:
        for name, value in extra_environment(args).items():
            print(f"export {name}={shlex.quote(value)}")
        print(shlex.join(msrun_command(args, command)))
        return 0
    requests, port = Requests(args.leash), args.master_port
    for attempt in range(args.attempt, args.attempt + args.max_restarts + 1):
        if attempt > 0:
            keep_logs(args, attempt - 1)
            command = again(args, command)
        if args.node_rank == 0:
            args.master_port = port_of(port)
        line = msrun_command(args, command)
        say(shlex.join(line))
        code = Node(args, line, requests).run()
        left = args.attempt + args.max_restarts - attempt
        if code in NOT_AGAIN or requests.signals or left == 0:
            break
        say(f"starting again ({left} more allowed); the logs so far go to {args.log_dir}/attempt_{attempt}")
    return code


def again(args: argparse.Namespace, command: list[str]) -> list[str]:
    """The command of a restart: a training goes on from its checkpoint, also under resume_training: false."""
    wanted = "resume_training=true"
    return [*command, wanted] if args.train and wanted not in command else command


def main(argv: list[str] | None = None) -> int:
    try:
        return run(build_parser().parse_args(argv))
    except Mistake as mistake:
        print(f"mindglm: {mistake}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
