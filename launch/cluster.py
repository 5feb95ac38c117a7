"""Many nodes of one job: starts launch/train_node.sh on each over ssh, watches all, ends all when one fails.

The head of launch/train_cluster.sh says how to call it. Every node's standard input stays connected to this program,
its leash: a word on it ("term", "kill") or its end makes the node stop, so that nothing is left behind when ssh or this
program breaks.
"""

import argparse
import ipaddress
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import supervise
from mindglm.diagnose.hosts import Host, read_hosts
from mindglm.errors import UserError
from processes import NOT_AGAIN, Mistake, put, say

SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5", "-o",
       "ServerAliveCountMax=3"]  # a node that is lost is noticed after 15 s
SSH_FAILED = 255
DIED = re.compile(rb"^mindglm: died ([\d.]+) (.+)$")


def check_hosts(hosts: list[Host], workers: int, path: str) -> None:
    """Mistake unless the hosts' slots are equal and make `workers`."""
    if workers % len(hosts):
        raise Mistake(f"the recipe's parallel_config makes {workers} processes, which {len(hosts)} machines of {path} "
                      "cannot share evenly")
    each = workers // len(hosts)
    wrong = [host for host in hosts if host.slots not in (None, each)]
    if wrong:
        raise Mistake(f"the recipe's parallel_config makes {workers} processes, {each} on each of {len(hosts)} "
                      f"machines, but {path} says {wrong[0].name} slots={wrong[0].slots}")


def master_address(hosts: list[Host], given: str | None) -> str:
    """How all nodes reach node 0. A loopback address would make each node look for the scheduler in itself: many
    systems map a machine's own name to 127.0.1.1."""
    if given is not None:
        return given
    address = hosts[0].address
    try:
        ip = socket.gethostbyname(address)
    except OSError:
        return address  # known there, not here
    if len(hosts) > 1 and ipaddress.ip_address(ip).is_loopback:
        raise Mistake(f"{hosts[0].name} is {ip} here, which the other machines cannot reach; write its address in the "
                      f"hosts file ({hosts[0].name} addr=10.0.0.1), or give --master-addr")
    return ip


class Remote:
    """A node's ssh: its output goes to the console behind the node's name."""

    def __init__(self, rank: int, host: Host, command: list[str], width: int):
        self.rank, self.host = rank, host
        self.died: tuple[float, str] | None = None
        self._label = f"[{host.name}]".ljust(width + 3).encode()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        while data := os.read(self.process.stdout.fileno(), 65536):
            *lines, rest = re.split(rb"(?<=[\r\n])", rest + data)  # a progress bar ends its lines with \r
            for line in lines:
                self._put(line)
        if rest:
            self._put(rest + b"\n")

    def _put(self, line: bytes) -> None:
        match = DIED.match(line.rstrip())
        if match:
            self.died = float(match[1]), match[2].decode()
        else:
            put(self._label + line)

    def tell(self, word: str) -> None:
        try:
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()
        except OSError:
            return  # it has ended

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def finish(self) -> None:
        """Close the leash and the connection."""
        if self.code is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=5)

    def how(self) -> str:
        if self.code == SSH_FAILED:
            return f"{self.host.name}: ssh failed or lost the machine"
        which = f", {self.died[1]} first" if self.died else ""
        return f"node {self.rank} ({self.host.name}) failed first{which}, exit code {self.code}; see above"


class Job:
    """All nodes, one start."""

    def __init__(self, commands: list[tuple[Host, list[str]]], requests: supervise.Requests, grace: float):
        self._requests, self._grace = requests, grace
        width = max(len(host.name) for host, _ in commands)
        self.nodes = [Remote(rank, host, command, width) for rank, (host, command) in enumerate(commands)]

    def run(self) -> int:
        """Watch until the end, end what is left, and say which node failed first; the job's exit code."""
        try:
            self._watch()
        finally:
            ended = [node for node in self.nodes if node.code]
            self._tell("kill")
            self._wait(15)
            for node in self.nodes:
                node.finish()
        if all(node.code == 0 for node in self.nodes):
            return 0
        if self._requests.signals:
            return 128 + self._requests.signals[0]
        # Of those that ended within two seconds, the one whose worker died first by its own clock.
        first = min(ended, key=lambda node: node.died or (float("inf"), ""))
        say(first.how())
        return 1 if first.code == SSH_FAILED else first.code

    def _watch(self) -> None:
        told = None
        while any(node.code is None for node in self.nodes):
            if self._requests.signals and told is None:
                told = time.monotonic()
                say("all nodes are told to save and leave")
                self._tell("term")
            if told and (self._requests.kill or time.monotonic() > told + self._grace + 30):
                break
            if told is None and any(node.code for node in self.nodes):
                self._wait(2)
                break
            time.sleep(supervise.TICK)

    def _tell(self, word: str) -> None:
        for node in self.nodes:
            if node.code is None:
                node.tell(word)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while any(node.code is None for node in self.nodes) and time.monotonic() < end:
            time.sleep(supervise.TICK)


def node_options(args: argparse.Namespace, hosts: list[Host], rank: int, attempt: int) -> list[str]:
    options = ["--nodes", len(hosts), "--node-rank", rank, "--workers", args.workers, "--master-addr", args.master_addr,
               "--master-port", args.master_port, "--log-dir", args.log_dir, "--nic", args.nic, "--tail", args.tail,
               "--grace", args.grace, "--cluster-time-out", args.cluster_time_out, "--bind-core", args.bind_core,
               "--attempt", attempt, "--leash"]
    return [str(option) for option in options] + args.command


def ssh_command(args: argparse.Namespace, host: Host, options: list[str]) -> list[str]:
    """What starts a node: the same on every machine but for the node's number."""
    root = pathlib.Path(__file__).resolve().parents[1]
    variables = {"MINDGLM_VENV": os.environ.get("MINDGLM_VENV", sys.prefix), "MINDGLM_ENV_FILE": args.env}
    settings = [f"{name}={value}" for name, value in variables.items() if value]
    script = shlex.join(["env", *settings, "bash", str(root / "launch" / "train_node.sh"), *options])
    return [*SSH, host.name, f"cd {shlex.quote(os.getcwd())} && exec {script}"]


def show(args: argparse.Namespace, hosts: list[Host]) -> None:
    """--dry-run: every command, and what it comes to on its machine."""
    for rank, host in enumerate(hosts):
        options = node_options(args, hosts, rank, 0)
        print(f"# node {rank}: {host.name}")
        print(shlex.join(ssh_command(args, host, options)))
        node = supervise.build_parser().parse_args(["--train", *options])
        command = supervise.worker_command(node)
        supervise.complete(node)
        print(f"#   runs there: {shlex.join(supervise.msrun_command(node, command))}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train_cluster.sh", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--hosts", required=True, metavar="FILE", help="a machine a line: NAME [slots=8] [addr=ADDRESS]")
    add("--master-addr", metavar="ADDRESS", help="of node 0; default: of the first machine in FILE")
    add("--master-port", type=int, default=8118, metavar="PORT")
    add("--nic", default="auto", help="network interface of HCCL's first contact, on every node")
    add("--env", default=None, metavar="FILE", help="variables to source on every node; 'none' for none")
    add("--log-dir", default="output/msrun_log", metavar="DIR")
    add("--tail", default="0", metavar="RANKS", help="ranks whose logs are copied to the console")
    add("--grace", type=float, default=300, metavar="SECONDS", help="for the workers to save after a signal")
    add("--cluster-time-out", type=int, default=600, metavar="SECONDS", help="for all workers to find together")
    add("--bind-core", default="auto", choices=["auto", "True", "False"])
    add("--max-restarts", type=int, default=0, metavar="N", help="start again from the last checkpoint after a fault")
    add("--dry-run", action="store_true", help="print every command that would be run")
    add("command", nargs=argparse.REMAINDER, metavar="RECIPE [key=value ...]")
    return parser


def run(args: argparse.Namespace) -> int:
    hosts = read_hosts(args.hosts)
    if not args.command or args.command[0].startswith("-"):
        raise Mistake(f"expected a RECIPE behind the options, given: {' '.join(args.command) or 'nothing'}")
    args.workers = supervise.recipe_workers(args.command)
    check_hosts(hosts, args.workers, args.hosts)
    args.master_addr = master_address(hosts, args.master_addr)
    args.env = args.env and ("none" if args.env == "none" else os.path.abspath(args.env))
    if args.dry_run:
        show(args, hosts)
        return 0
    if shutil.which("ssh") is None:
        raise Mistake("no ssh on this machine's PATH; install it, or start launch/train_node.sh on each node by hand")
    requests = supervise.Requests(leash=False)
    for attempt in range(args.max_restarts + 1):
        commands = [(host, ssh_command(args, host, node_options(args, hosts, rank, attempt)))
                    for rank, host in enumerate(hosts)]
        say(f"{len(hosts)} nodes, {args.workers} workers, scheduler at {args.master_addr}:{args.master_port}")
        code = Job(commands, requests, args.grace).run()
        if code in NOT_AGAIN or requests.signals or attempt == args.max_restarts:
            break
        say(f"starting all nodes again ({args.max_restarts - attempt} more allowed); the logs so far go to "
            f"{args.log_dir}/attempt_{attempt}")
    return code


def main(argv: list[str] | None = None) -> int:
    try:
        return run(build_parser().parse_args(argv))
    except (Mistake, UserError) as mistake:
        print(f"mindglm: {mistake}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
