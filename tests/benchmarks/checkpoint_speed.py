"""Training checkpoints measured: throughput against plain safetensors, what a save costs a step, memory of a load.

    python -m tests.benchmarks.checkpoint_speed --folder /data/scratch [--gigabytes 1] [--runs 5]

1. Save and load of the same bytes (model, two moments, average): the store, which syncs and sums every block, by turns
   with the public safetensors library, with and without an fsync of its files. Files are in the page cache for loads.
2. The real Saver and optimizer in a process that trains meanwhile: seconds for which `save`, and then the update that
   waits for the copy, hold the step up, as a share of the seconds until the checkpoint stands. And what the copy and
   the writing, which take memory bandwidth and processor time, cost the steps that run beside them.
3. Peak memory of `resume` in a process of its own, as a share of the bytes read.

Prints markdown; exit code 1 when a bar is missed. Measure on a quiet machine.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import safetensors.numpy

from mindglm.checkpoint import store
from mindglm.checkpoint.stored import Checkpoint

KINDS = {"model": [""], "opt": ["adam_m.", "adam_v."], "ema": [""]}
TENSORS = 24
SHARE_BAR, MEMORY_BAR = 0.05, 0.10
PRODUCTS, WIDTH = 40, 768
"""A training step is that many matrix products, 36 GFLOP: what 1 GB of state, 62 million parameters, computes for about
100 tokens."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where there is room for 4 times the bytes")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of a checkpoint")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--part", choices=["throughput", "share", "memory"], help="one part alone")
    parser.add_argument("--child", choices=["share", "memory"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = args.folder / "mindglm_checkpoint_speed"
    if args.child:
        print(json.dumps({"share": share_child, "memory": memory_child}[args.child](root, args)))
        return 0
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        parts = {"throughput": throughput, "share": share, "memory": memory}
        return max(part(root, args) for name, part in parts.items() if args.part in (None, name))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def parameters_of(gigabytes: float) -> int:
    """Trained parameters of a checkpoint of that size: 16 bytes each."""
    return int(gigabytes * 1e9 / 16) // TENSORS * TENSORS


def tensors_of(gigabytes: float) -> dict[str, dict[str, np.ndarray]]:
    """{kind: tensors}; random bits, as weights are."""
    rng, size = np.random.default_rng(0), parameters_of(gigabytes) // TENSORS
    return {kind: {f"{prefix}layer.{i}.weight": rng.random(size, np.float32) for prefix in prefixes
                   for i in range(TENSORS)} for kind, prefixes in KINDS.items()}


# ---- throughput


def throughput(root: pathlib.Path, args) -> int:
    kinds = tensors_of(args.gigabytes)
    nbytes = sum(array.nbytes for tensors in kinds.values() for array in tensors.values())
    seconds: dict[str, list[float]] = {}

    def timed(name: str, action) -> None:
        start = time.perf_counter()
        action()
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    for run in range(args.runs):
        timed("save: store (synced, block sums)", lambda: store.save(root, run + 1, kinds, {}, "", keep=1))
        for synced in (False, True):
            shutil.rmtree(root / "plain", ignore_errors=True)
            os.sync()
            name = "save: safetensors, synced" if synced else "save: safetensors"
            timed(name, lambda synced=synced: plain_save(root / "plain", kinds, synced))
        timed("load: store (block sums)", lambda: [
            stored.array(name) for stored in Checkpoint(store.locate(root)).kinds.values() for name in stored.names])
        timed("load: safetensors", lambda: [safetensors.numpy.load_file(path) for path in (root / "plain").iterdir()])
    print(f"Checkpoint of {nbytes / 1e9:.2f} GB, {args.runs} runs by turns\n\n| what | median s | GB/s | all runs |")
    print("|---|---|---|---|")
    for name in sorted(seconds, reverse=True):
        median = statistics.median(seconds[name])
        runs = " ".join(f"{s:.2f}" for s in seconds[name])
        print(f"| {name} | {median:.2f} | {nbytes / 1e9 / median:.2f} | {runs} |")
    print()
    return 0


def plain_save(folder: pathlib.Path, kinds: dict, synced: bool) -> None:
    folder.mkdir()
    for kind, tensors in kinds.items():
        safetensors.numpy.save_file(tensors, folder / f"{kind}.safetensors")
        if synced:
            with open(folder / f"{kind}.safetensors", "rb") as file:
                os.fsync(file.fileno())


# ---- what a save costs a step, and what a load takes


def child(name: str, args) -> dict:
    """What the part `name` measured in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.checkpoint_speed", "--child", name, "--folder",
                           str(args.folder), "--gigabytes", str(args.gigabytes), "--runs", str(args.runs)],
                          stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def training(args, root: pathlib.Path, background: bool):
    """(Saver, parameters, optimizer, average) of a model without layers: weights alone."""
    import mindspore as ms
    from mindspore import Parameter, Tensor

    from mindglm import recipe as recipes
    from mindglm.recipe import schema
    from mindglm.train.ema import Ema
    from mindglm.train.optimizer import build
    from mindglm.train.saver import Saver
    from tests.train import fake

    ms.runtime.launch_blocking()
    size = parameters_of(args.gigabytes) // TENSORS
    rng = np.random.default_rng(0)
    parameters = {f"layer.{i}.weight": Parameter(Tensor(rng.random(size, np.float32)), name=f"layer.{i}.weight")
                  for i in range(TENSORS)}
    recipe = fake.make_recipe(root / "run", checkpoint=schema.CheckpointSection(
        save_checkpoint_steps=1, keep_checkpoint_max=1, async_save=background))
    optimizer = build(list(parameters.values()), recipe.optimizer)
    text = recipes.to_yaml(recipe)
    return Saver(root / "run" / "checkpoint", recipe, text), recipe, text, parameters, optimizer, Ema(optimizer, 0.9, 0)


def share(root: pathlib.Path, args) -> int:
    found = child("share", args)
    steps = found.pop("seconds of a step")
    print("| save | seconds a step is held up | until the checkpoint stands | share |\n|---|---|---|---|")
    for name, rows in found.items():
        for blocked, total in rows:
            print(f"| {name} | {blocked:.3f} | {total:.2f} | {blocked / total:.1%} |")
    median = statistics.median(blocked / total for blocked, total in found["async, later ones"])
    print(f"\nasync share: median {median:.1%} (bar {SHARE_BAR:.0%}); a step without its update takes "
          f"{statistics.median(steps['alone']):.2f} s alone, "
          f"{statistics.median(steps['beside the copy']):.2f} s beside the copy, "
          f"{statistics.median(steps['beside the writing']):.2f} s beside the writing\n")
    return int(median > SHARE_BAR)


def share_child(root: pathlib.Path, args) -> dict:
    """{kind of save: [(seconds blocked, seconds in all)]}, while matrix products stand for training."""
    from mindspore import Tensor, mint

    from mindglm.train.state import Counters

    rows: dict[str, list] = {"plain": [], "async, first": [], "async, later ones": []}
    steps: dict[str, list] = {"alone": [], "beside the copy": [], "beside the writing": []}
    x = Tensor(np.random.default_rng(1).random((WIDTH, WIDTH), np.float32))
    step = 0

    def train(when: str) -> None:
        """Forward and backward."""
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            mint.matmul(x, x).asnumpy()
        steps[when].append(time.perf_counter() - start)

    for background in (False, True):
        saver, _, _, parameters, optimizer, ema = training(args, root, background)
        saver.prepare(parameters, optimizer, ema)
        for _ in range(5):  # the steps before the first save
            train("alone")
        for run in range(args.runs):
            step += 1
            start = time.perf_counter()
            assert saver.save(Counters(step), parameters, optimizer, ema) == []
            blocked = time.perf_counter() - start
            if background:
                train("beside the copy")
                start_update = time.perf_counter()
                optimizer.before_change()
                blocked = blocked + time.perf_counter() - start_update
            while saver.busy:
                train("beside the writing")
                assert saver.poll() == []
            kind = "plain" if not background else "async, later ones" if run else "async, first"
            rows[kind].append((blocked, time.perf_counter() - start))
        saver.close()
    return {**rows, "seconds of a step": steps}


def memory(root: pathlib.Path, args) -> int:
    shutil.rmtree(root / "run", ignore_errors=True)
    store.save(root / "run" / "checkpoint", 1, tensors_of(args.gigabytes), {
        "step": 1, "updates": 1, "skipped": 0, "skipped_in_row": 0}, recipe_text(root, args))
    found = child("memory", args)
    over = found["peak"] - found["before"]
    print(f"Load of {found['bytes'] / 1e9:.2f} GB: peak memory {over / 1e9:.2f} GB above what the state itself takes "
          f"({found['before'] / 1e9:.2f} GB with MindSpore), {over / found['bytes']:.0%} of the bytes read (bar "
          f"{MEMORY_BAR:.0%}), {found['seconds']:.2f} s\n")
    return int(over > MEMORY_BAR * found["bytes"])


def recipe_text(root: pathlib.Path, args) -> str:
    done = subprocess.run([sys.executable, "-c", "import sys, pathlib, argparse\n"
                           "from tests.benchmarks import checkpoint_speed as c\n"
                           "a = argparse.Namespace(gigabytes=1e-6)\n"
                           "print(c.training(a, pathlib.Path(sys.argv[1]), False)[2])", str(root)],
                          stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def memory_child(root: pathlib.Path, args) -> dict:
    from mindglm.train import state

    _, recipe, text, parameters, optimizer, ema = training(args, root, False)
    for array in (*optimizer.moments(), ema.average):
        array.fill(1.0)  # memory is taken when it is first written
    nbytes = 16 * optimizer.size
    before, start = peak(reset=True), time.perf_counter()
    resumed = state.resume(root / "run" / "checkpoint", recipe, text, parameters, optimizer, ema)
    assert resumed.counters.step == 1
    return {"before": before, "peak": peak(), "bytes": nbytes, "seconds": time.perf_counter() - start}


def peak(reset: bool = False) -> int:
    """Bytes: the most this process has held; with reset, what it holds now, from which the most is counted anew."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    key = "VmRSS" if reset else "VmHWM"
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
