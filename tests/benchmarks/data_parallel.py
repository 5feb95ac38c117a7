"""Efficiency of data parallelism: samples a second of n ranks over n times those of one, each with the same share.

    python -m tests.benchmarks.data_parallel

Two kinds of figures, both by the trainer's own step (gradients summed in buckets, clipping, AdamW):
real: forward and backward of the nano DiT, one thread and one core a rank.
padded: in their place a fixed sleep, so that ranks beyond the cores count too; gradients are given, sums are real.
Steps of one rank alone, while the others stand still, take turns with steps of all, so that whatever else the machine
does meets both. Prints a markdown table; seconds are medians over --steps after one that is not counted.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

from tests.benchmarks import jobs

RECIPE = Path(__file__).parents[2] / "recipes" / "nano" / "dit.yaml"
SAMPLES = 4
"""Of a rank in a step."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--sleep", type=float, default=0.5, help="seconds of a padded step's computation")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        available = sorted(os.sched_getaffinity(0))  # MindSpore's threads keep what they find when it is imported
        os.sched_setaffinity(0, {available[int(os.environ["RANK_ID"]) % len(available)]})
        work(jobs.begin(args.worker))
        return 0
    cores, rows = len(os.sched_getaffinity(0)), []
    for n in args.ranks:
        cases = [(kind, shard) for kind in (["real", "padded"] if n <= cores else ["padded"])
                 for shard in (False, True)]
        options = {"cases": cases, "steps": args.steps, "sleep": args.sleep}
        for (kind, shard), found in zip(cases, jobs.results("tests.benchmarks.data_parallel", n, options)):
            rows.append(f"| {kind} | {n} | {'ZeRO-1' if shard else 'whole'} | {found['alone']:.3f} s | "
                        f"{found['step']:.3f} s | {found['forward_backward']:.3f} s | {found['reduce']:.3f} s | "
                        f"{found['optimizer']:.3f} s | {found['alone'] / found['step']:.0%} |")
    print("| computation | ranks | optimizer state | step of one alone | step of all | forward, backward | sums | "
          "update | efficiency |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(sorted(rows, key=lambda row: row.startswith("| padded"))))
    print(f"\n{SAMPLES} samples a rank and step; padded: {args.sleep:g} s of sleep; {cores} cores")
    return 0


def work(options: dict) -> None:
    """One rank: medians of the phases of a step, for each case."""
    from mindglm.parallel import transport
    from mindglm.train.layout import Layout

    together, found = Layout(transport.rank(), transport.world()), []
    for kind, shard in options["cases"]:
        alone, batch = train_step(kind, False, options["sleep"], Layout())
        step, _ = train_step(kind, shard, options["sleep"], together)
        # The numbers that all ranks agree on are summed over all processes; one alone has nobody to agree with.
        alone._agree = lambda pairs, squares, flags: [pairs[0][0], pairs[0][1], sum(squares), 0.0, 0.0]
        lines = []
        for i in range(options["steps"] + 1):
            line = {}
            transport.barrier()
            if transport.rank() == 0:
                line["alone"] = timed(alone, batch, i)["step"]
            transport.barrier()
            lines.append({**line, **timed(step, batch, i)})
        found.append({name: statistics.median(line[name] for line in lines[1:]) for name in lines[0]})
    jobs.say(options, found)


def timed(step, batch, i: int) -> dict[str, float]:
    """Seconds of step i and of its phases."""
    start = time.perf_counter()
    seconds = step([batch], 1e-4, i + 1).seconds
    return {**seconds, "step": time.perf_counter() - start}


def train_step(kind: str, shard: bool, sleep: float, here):
    """(TrainStep, batch) of this rank in the layout `here`."""
    import numpy as np
    from mindspore import Tensor

    from mindglm import recipe as recipes
    from mindglm.parallel import transport
    from mindglm.train import objectives, optimizer
    from mindglm.train.gradients import RunningSum
    from mindglm.train.rehearsal import Samples
    from mindglm.train.step import TrainStep, local_step

    recipe = recipes.load(RECIPE, ["pretrained_model_dir=null"])
    objective = objectives.build(recipe)
    parameters = objective.network.trainable_params()
    built = optimizer.build(parameters, recipe.optimizer, here, shard)
    data, first = Samples(recipe), SAMPLES * transport.rank()
    batch = objective.collate([data[first + i] for i in range(SAMPLES)], lambda i, _: np.random.default_rng(first + i),
                              True)
    if kind == "real":
        return local_step(objective.network, built, recipe.runner_wrapper, compiled=False), batch
    gradients = [Tensor(np.random.default_rng(i).standard_normal(p.shape, dtype=np.float32))
                 for i, p in enumerate(built.params)]

    def sleeping(micro_batches, sums):
        time.sleep(sleep)
        for number, gradient in enumerate(gradients):
            sums.add(number, gradient, 0, True)
        return [(1.0, 1.0)]

    sums = RunningSum(built.space, [parameter.name for parameter in parameters])
    return TrainStep(sleeping, sums, built, recipe.runner_wrapper), batch


if __name__ == "__main__":
    sys.exit(main())
