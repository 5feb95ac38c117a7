"""Trains for a while with checkpoints, validation, pictures and TensorBoard, and says how much memory has grown.

    python -m tests.benchmarks.soak --minutes 30 [--async]      or, the same work on any machine, --steps 1500

One process, a small AR generator, compiled as the shipped CPU recipes are (context.mode 0). With --mode 1 it grows: in
PyNative mode on CPU MindSpore keeps 648 bytes for every scalar argument (tests/ops/test_leak.py).
Memory is the resident set half-way between two checkpoints, when the background has ended. The first 700 steps warm up:
in them everything that comes often is compiled. Of the rest, growth is the median of the last fifth over that of the
second. Prints a line a minute and the result; exit code 1 above --limit.
"""

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

SAVE, WATCH, PICTURE = 20, 10, 40
WARM = 700
"""Steps that do not count. The pictures' function is compiled at the 16th, step 640 (mindglm/train/work.py)."""


class Done(Exception):
    """The time is over."""


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def trainer_in(folder: Path, steps: int, in_background: bool, mode: int):
    """A Trainer of so many steps."""
    from mindglm import recipe
    from mindglm.recipe import schema
    from mindglm.train.loop import Trainer
    from mindglm.train.objectives import build
    from tests.parallel import same_run_worker as runs

    settings = dataclasses.replace(
        runs.recipe_of({"task": "ar", "ema": 0.9}, folder), context=schema.ContextSection(mode=mode),
        lr_schedule=schema.LrScheduleSection(learning_rate=1e-3, total_steps=100),
        runner_config=schema.RunnerSection(global_batch_size=8, gradient_accumulation_steps=2, stop_step=steps),
        checkpoint=schema.CheckpointSection(save_checkpoint_steps=SAVE, async_save=in_background),
        validation=schema.ValidationSection(WATCH, 5),
        monitor_config=schema.MonitorSection(sample_step_interval=PICTURE, weights_hash_interval=SAVE))
    return Trainer(settings, recipe.to_yaml(settings), build(settings), runs.Samples("ar"), runs.Samples("ar", 7))


def soak(folder: Path, minutes: float, steps: int, in_background: bool, mode: int) -> tuple[float, int, list[int]]:
    """(growth as a share, steps, resident bytes half-way between checkpoints), of whichever ends first."""
    trainer, seen = trainer_in(folder, steps + 1, in_background, mode), []
    due, start, told = trainer._due, time.monotonic(), [0.0]

    def watched():
        due()
        if trainer.counters.step % SAVE == SAVE // 2:
            seen.append(resident())
        passed = time.monotonic() - start
        if passed - told[0] > 60:
            told[0] = passed
            print(f"{passed / 60:5.1f} min  step {trainer.counters.step}  {resident() / 2**20:.1f} MiB", flush=True)
        if passed > 60 * minutes or trainer.counters.step == steps:
            raise Done

    trainer._due = watched
    try:
        trainer.fit()
    except Done:
        warm = seen[WARM // SAVE:]
        fifth = len(warm) // 5
        if fifth == 0:
            raise SystemExit(f"{trainer.counters.step} steps are too few: {WARM} warm up, {5 * SAVE} more are needed")
        growth = statistics.median(warm[-fifth:]) / statistics.median(warm[fifth:2 * fifth]) - 1
        return growth, trainer.counters.step, seen
    raise AssertionError("the run ended before its time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, default=10**6, help="end after so many, if that is sooner")
    parser.add_argument("--async", dest="in_background", action="store_true", help="checkpoint.async_save: true")
    parser.add_argument("--mode", type=int, choices=[0, 1], default=0, help="context.mode")
    parser.add_argument("--limit", type=float, default=0.02, help="share of growth that passes")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    try:
        growth, steps, seen = soak(folder, args.minutes, args.steps, args.in_background, args.mode)
    finally:
        shutil.rmtree(folder)
    print(f"{steps} steps, {steps // SAVE} checkpoints, {steps // WATCH} validations, "
          f"{steps // PICTURE} pictures: memory {seen[0] / 2**20:.1f} MiB at first, "
          f"{seen[-1] / 2**20:.1f} MiB at last, growth {100 * growth:.2f} % (limit {100 * args.limit:g} %)")
    return 1 if growth > args.limit else 0


if __name__ == "__main__":
    sys.exit(main())
