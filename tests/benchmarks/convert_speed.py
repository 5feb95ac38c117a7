"""Conversion against `cp`: a random checkpoint in the released AR layout, bytes a second and peak memory.

    python -m tests.benchmarks.convert_speed --folder /data/scratch            # all 20 GB: needs 41 GB of room
    python -m tests.benchmarks.convert_speed --folder /data/scratch --gigabytes 4 --runs 5

Makes a checkpoint with the tensors of the released AR generator (fewer layers where fewer gigabytes are asked for),
then by turns copies it with cp and converts it with `ckpt_tools.convert --from hf --to mindglm`, in processes of their
own; each is timed until its bytes are on the disk. Prints a markdown table with medians; exit code 1 under --bar.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np

from mindglm.checkpoint import released
from mindglm.checkpoint.components import RELEASED
from mindglm.checkpoint.tensors import Stream
from mindglm.checkpoint.writer import FolderWriter
from mindglm.models.ar_generator import hf_names
from mindglm.models.ar_generator.config import from_hf

AR = hf_names.COMPONENT
MEASURED = """
import json, resource, sys
from ckpt_tools import convert
code = convert.main(sys.argv[1:])
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
sys.exit(code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where there is room for twice the bytes")
    parser.add_argument("--gigabytes", type=float, default=20.3, help="size of the checkpoint; the release has 20.2")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", help="also cast on the way")
    parser.add_argument("--bar", type=float, default=0.7, help="least ratio of speeds, convert to cp")
    args = parser.parse_args()
    root = args.folder / "mindglm_convert_speed"
    shutil.rmtree(root, ignore_errors=True)
    try:
        return measure(args, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(args, root: pathlib.Path) -> int:
    size = make(root / "source", args.gigabytes)
    print(f"{size / 1e9:.2f} GB in {len(list((root / 'source' / AR).glob('*.safetensors')))} files", file=sys.stderr)
    more = ["--dtype", args.dtype] if args.dtype else []
    command = [sys.executable, "-c", MEASURED, "--from", "hf", "--to", "mindglm", str(root / "source"),
               str(root / "copy"), *more]
    seconds, peaks = {"cp": [], "convert": []}, []
    for _ in range(args.runs):
        seconds["cp"].append(timed(["cp", "-r", str(root / "source"), str(root / "copy")], root)[0])
        spent, told = timed(command, root)
        seconds["convert"].append(spent)
        peaks.append(json.loads(told.splitlines()[-1]))
    cp, convert = statistics.median(seconds["cp"]), statistics.median(seconds["convert"])
    print("| what | median seconds | GB/s | all runs |\n|---|---|---|---|")
    for name, median in (("cp", cp), ("convert", convert)):
        print(f"| {name} | {median:.2f} | {size / 1e9 / median:.2f} | {' '.join(f'{s:.2f}' for s in seconds[name])} |")
    print(f"\nratio {cp / convert:.2f} of cp's speed (bar {args.bar}), peak memory {max(peaks) / 1e9:.2f} GB (bar 1.5)")
    return int(cp / convert < args.bar or max(peaks) > 1.5e9)


def timed(command: list[str], root: pathlib.Path) -> tuple[float, str]:
    """(seconds until the copy is on the disk, what was printed); the copy is removed again."""
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    subprocess.run(["sync", "-f", str(root)], check=True)
    spent = time.perf_counter() - start
    shutil.rmtree(root / "copy")
    return spent, result.stdout


def make(target: pathlib.Path, gigabytes: float) -> int:
    """A checkpoint of random bits with the released names, as many layers as fit; returns its bytes."""
    config = released.component_config(RELEASED, AR)
    whole = sum(2 * int(np.prod(shape)) for shape in hf_names.tensors(from_hf(config)).values())
    if gigabytes * 1e9 < whole:
        share = max(gigabytes * 1e9 / whole, 0.001)
        config["text_config"]["num_hidden_layers"] = max(1, int(40 * share))
        config["vision_config"]["depth"] = max(1, int(40 * share))
        config["text_config"]["vocab_size"] = max(16512, int(168064 * share))
        config["image_token_id"] = config["text_config"]["pad_token_id"] = config["text_config"]["vocab_size"] - 1
    shapes = hf_names.tensors(from_hf(config))
    rng = np.random.default_rng(0)
    block = rng.integers(0, 1 << 14, 1 << 23, dtype=np.uint16)  # finite bfloat16 values

    def pieces(count: int):
        while count:
            size = min(count, block.size - 1)
            start = int(rng.integers(0, block.size - size))
            yield block[start:start + size]
            count = count - size

    streams = {name: Stream("BF16", shape, lambda count=int(np.prod(shape)): pieces(count))
               for name, shape in shapes.items()}
    total = sum(stream.nbytes for stream in streams.values())
    with FolderWriter(target, total) as writer:
        writer.write_component(AR, released.config_text(config), streams, "bfloat16")
        writer.finish(sealed=False)
    return total


if __name__ == "__main__":
    sys.exit(main())
