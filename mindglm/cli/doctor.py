"""Check this machine, or all machines of a cluster, before a run.

    mindglm doctor
    mindglm doctor recipes/nano/dit.yaml parallel_config.data_parallel=2
    mindglm doctor --hosts hosts.txt recipes/glm_image/ar_9b_pretrain_256.yaml

Looks at versions (Python, NumPy, MindSpore, CANN, driver), devices and their free memory, network interfaces and HCCL's
variables, ports, limits, memory, the output folder and the room for the recipe's checkpoints; with --hosts also at
clocks, whether code and versions are the same everywhere, whether the output folder is one for all, and whether all
reach node 0. Every finding is ok, warn or fail with what to do. Exit code 1 when one fails.
"""

import argparse
import dataclasses
import json
import math
import os
import socket
import sys
from pathlib import Path

from mindglm import recipe as recipes
from mindglm.diagnose import checks, cluster, hosts, machine, network
from mindglm.diagnose.findings import Finding
from mindglm.errors import UserError

MASTER_PORT = 8118  # as launch/train_cluster.sh; on one machine launch/train_node.sh takes a free one
BYTES_A_PARAMETER = 4 + 8
"""float32 weights and two moments; the average adds 4."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="the run that is to be made")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="as for mindglm train")
    parser.add_argument("--hosts", metavar="FILE", help="a machine a line, as for launch/train_cluster.sh")
    parser.add_argument("--master-addr", metavar="ADDRESS", help="of node 0; default: of the first machine in FILE")
    parser.add_argument("--master-port", type=_port, metavar="PORT", help="of the scheduler; with --hosts 8118")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    # For the machines that --hosts asks.
    for name in ("--facts", "--leave", "--folder", "--reach"):
        kind = {"action": "store_true"} if name == "--facts" else {"default": ""}
        parser.add_argument(name, help=argparse.SUPPRESS, **kind)
    parser.add_argument("--token", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--listen", type=int, help=argparse.SUPPRESS)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= network.LAST_PORT:
        raise argparse.ArgumentTypeError(f"given {text!r}, expected a port, 1 to {network.LAST_PORT}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """0, or 1 when a check failed."""
    if args.listen is not None:
        _listen(args.listen)
    elif args.facts:
        address, _, port = args.reach.rpartition(":")
        found = machine.gather(args.folder, args.master_port, args.token, args.leave,
                               (address, int(port)) if args.reach else None)
        print(json.dumps(found.to_json()), flush=True)
    elif args.hosts:
        return _report(_cluster(args), args.json)
    else:
        need = _need(args, machines=1)
        here = machine.gather(need.folder, need.port)
        return _report({here.host: checks.check(here, need)}, args.json)
    return 0


def _need(args: argparse.Namespace, machines: int) -> checks.Need:
    """What the recipe asks of each of `machines`. UserError when it cannot be shared evenly."""
    if args.recipe is None:
        return checks.Need(port=args.master_port)
    loaded = recipes.load(args.recipe, args.overrides)
    layout = loaded.parallel_config
    world = layout.data_parallel * layout.model_parallel * layout.context_parallel * layout.pipeline_stage
    if world % machines:
        raise UserError(f"the recipe's parallel_config makes {world} processes, which {machines} machines cannot share "
                        "evenly; change parallel_config or the hosts file")
    size, kept = _checkpoint_bytes(loaded), loaded.checkpoint
    return checks.Need(loaded.context.device_target, world // machines, world, loaded.output_dir, size,
                       kept.keep_checkpoint_max + kept.keep_best_max + 1, args.master_port,
                       size // machines if kept.async_save else 0)


def _checkpoint_bytes(loaded) -> int:
    """Masters, moments and average: the planner's count, and for the small models, which it does not plan, of all
    tensors of the component (some may be frozen: never less than it takes)."""
    from mindglm.models import workload  # with NumPy, which `mindglm --help` does without

    if loaded.trainer.type in workload.PLANNED:
        trained = workload.of_recipe(loaded, "composed").parameters
    else:
        from mindglm.models.ar_generator import hf_names as ar
        from mindglm.models.glyph_encoder import hf_names as glyph
        from mindglm.models.vae import hf_names as vae

        names = {"ArGenerator": ar, "VAE": vae, "GlyphEncoder": glyph}[loaded.model_type]
        trained = sum(math.prod(shape) for shape in names.tensors(loaded.model.model_config).values())
    return trained * (BYTES_A_PARAMETER + (4 if loaded.ema.decay else 0))


def _cluster(args: argparse.Namespace) -> dict[str, list[Finding]]:
    machines = hosts.read_hosts(args.hosts)
    args.master_port = args.master_port or MASTER_PORT
    need = _need(args, len(machines))
    wrong = [host for host in machines if args.recipe and host.slots not in (None, need.workers)]
    if wrong:
        raise UserError(f"the recipe needs {need.workers} workers on each of {len(machines)} machines, but "
                        f"{args.hosts} says {wrong[0].name} slots={wrong[0].slots}")
    address = args.master_addr or _resolved(machines[0].address)
    folder = str(machine.standing(need.folder)) if need.folder else ""
    asked = ["--folder", folder, "--master-port", str(need.port)]
    ours = f"{machine.TOKEN}-head-{os.getpid()}"
    left = [f"{machine.TOKEN}-{place}-{os.getpid()}" for place in range(len(machines))]
    problem = machine.write_error(folder) if folder else ""
    questions = [(host, [*asked, "--token", ours, "--leave", name]) for host, name in zip(machines, left)]
    try:
        if folder and not problem:
            (Path(folder) / ours).write_text("here")
        answers, listening = [hosts.ask(*questions[0])], False
        first = answers[0].machine
        if first is not None and need.port not in first.busy and len(machines) > 1:
            with hosts.Listener(machines[0], need.port) as listener:
                listening = listener.listens
                reach = ["--reach", f"{address}:{need.port}"] if listening else []
                answers += hosts.ask_all([(host, [*words, *reach]) for host, words in questions[1:]])
        else:
            answers += hosts.ask_all(questions[1:])
        seen = [Path(folder) / name for name in left if folder]
        tokens = {path.name: path.read_text() for path in seen if path.exists()}
    finally:
        for name in [ours, *left] if folder else []:
            (Path(folder) / name).unlink(missing_ok=True)
    between = cluster.check(answers, tokens, address)
    if not listening:  # nobody could try it
        between = [finding for finding in between if finding.check != "reach"]
    report = {"all machines": between}
    for place, answer in enumerate(answers):
        if answer.machine is not None:
            report[answer.name] = checks.check(answer.machine, need, scheduler_here=place == 0)
    return report


def _resolved(address: str) -> str:
    try:
        return socket.gethostbyname(address)
    except OSError:
        return address  # known there, not here


def _listen(port: int) -> None:
    """Hold the port open until standard input ends."""
    with socket.create_server(("", port)) as server:
        print("listening", flush=True)
        sys.stdin.read()
        server.close()


def _report(found: dict[str, list[Finding]], as_json: bool) -> int:
    """Print the findings; the exit code."""
    if as_json:
        print(json.dumps({name: [dataclasses.asdict(finding) for finding in findings]
                          for name, findings in found.items()}, indent=2))
    else:
        for name, findings in found.items():
            print(f"== {name}")
            for finding in findings:
                print(f"{finding.level:4}  {finding.check}: {finding.text}")
                if finding.do:
                    print(f"      -> {finding.do}")
    failed = [finding.check for findings in found.values() for finding in findings if finding.level == "fail"]
    if failed and not as_json:
        print(f"{len(failed)} failed: {', '.join(sorted(set(failed)))}")
    return 1 if failed else 0
