"""Our times beside the public torch classes' in eager mode: same machine, same run, same cores, interleaved rounds.

    python -m tests.benchmarks.against_torch --torch-python /path/to/venv/bin/python

The torch side runs in a process of its own, in a Python that has torch, transformers and diffusers (versions in
tests/golden/requirements.txt). The sides take turns, one round each, and wait while the other computes; the figure is
the median of the rounds, the first of which (compilation, caches) is not counted. Prints a markdown table.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks import sizes

ROOT = pathlib.Path(__file__).parents[2]
CODES = sum(rows * columns for rows, columns in sizes.GRIDS)


class TorchSide:
    """The peer process; `measure` as in ours.Ours."""

    def __init__(self, python: str, folder: pathlib.Path, size: str, threads: int):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        command = [python, "-m", "tests.benchmarks.peer", str(folder), "--size", size, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                                        cwd=ROOT, env=environment)
        self.version = self._answer()["ready"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the torch side ended with code {self.process.wait()}; its messages are above")
        return json.loads(line)

    def ask(self, command: str) -> dict:
        print(command, file=self.process.stdin)
        return self._answer()

    def measure(self, task: str) -> dict:
        return self.ask(task)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(ours, peer, task: str, rounds: int, clock: str = "wall") -> dict:
    """Medians of `rounds` interleaved rounds after one that is not counted; `first`: ours of that one, by the wall."""
    first = ours.measure(task), peer.measure(task)
    check_same_work(task, *(answer["value"] for answer in first))
    seconds = {"ours": [], "torch": []}
    for _ in range(rounds):
        seconds["ours"].append(ours.measure(task)[clock])
        seconds["torch"].append(peer.measure(task)[clock])
    pairs = zip(seconds["ours"], seconds["torch"])
    return {"task": task, "first": first[0]["wall"], "ours": statistics.median(seconds["ours"]),
            "torch": statistics.median(seconds["torch"]), "ratio": statistics.median(a / b for a, b in pairs),
            "rounds": rounds, "clock": clock}


def check_same_work(task: str, ours: float, theirs: float) -> None:
    """Both sides computed the same: their numbers agree."""
    if abs(ours - theirs) > 1e-3 * max(abs(theirs), 1e-6):
        raise SystemExit(f"{task}: our value is {ours}, torch's is {theirs}; the sides do not compute the same thing")


def speed(task: str, seconds: float) -> str:
    return f"{CODES / seconds:.0f} codes/s" if task == "ar_decode" else f"{1000 * seconds:.0f} ms"


def table(results) -> str:
    """results: dicts of `compare` with their size. Markdown; a ratio under 1 means that ours is the faster one."""
    rows = ["| task | size | ours | torch eager | ours / torch (time) | first call |", "|---|---|---|---|---|---|"]
    for r in results:
        rows.append(f"| {sizes.DESCRIPTIONS[r['task']]} | {r['size']} | {speed(r['task'], r['ours'])} | "
                    f"{speed(r['task'], r['torch'])} | {r['ratio']:.2f} | {r['first']:.1f} s |")
    return "\n".join(rows)


def run_size(size: str, tasks, folder: pathlib.Path, arguments) -> list[dict]:
    """All tasks at one size, on a model folder that the peer makes in `folder`."""
    model = folder / size
    peer = TorchSide(arguments.torch_python, model, size, arguments.threads)
    from tests.benchmarks.ours import Ours  # imports MindSpore: its threads see the cores set in main

    ours = Ours(model, size, compiled=not arguments.dynamic)
    inputs = folder / f"{size}.npz"
    ours.save_inputs(inputs)
    peer.ask(f"load {inputs}")
    results = []
    for task in tasks:
        result = compare(ours, peer, task, arguments.rounds, arguments.clock)
        results.append({"size": size, "torch_version": peer.version, **result})
        print(f"{time.strftime('%H:%M:%S')} {json.dumps(results[-1])}", file=sys.stderr, flush=True)
    peer.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--torch-python", required=True, help="a Python with torch, transformers and diffusers")
    parser.add_argument("--size", action="append", choices=list(sizes.STRUCTURES), help="default: all")
    parser.add_argument("--task", action="append", choices=sizes.TASKS, help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores of each side")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: seconds of processor time, which with --threads 1 hold on a busy machine too")
    parser.add_argument("--dynamic", action="store_true", help="our side without ms.jit")
    parser.add_argument("--folder", type=pathlib.Path, help="where the model folders are made, and found again")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = []
        for size in arguments.size or sizes.STRUCTURES:
            results += run_size(size, arguments.task or sizes.TASKS, folder, arguments)
    print(table(results))


if __name__ == "__main__":
    main()
