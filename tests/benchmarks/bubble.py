"""The bubble of pipeline schedules, measured against the formula; computing is sleeping, so two cores do not lie.

    python -m tests.benchmarks.bubble                              # 1f1b and zb_h1, 2 to 4 ranks, under 3 minutes
    python -m tests.benchmarks.bubble --ranks 4 --kinds gpipe interleaved

1f1b, gpipe and interleaved run by the trainer's own executor: stages on the tape whose forward sleeps one unit and
whose backward sleeps two. zb_h1, which the executor refuses (the tape has no separate W), walks its table through the
same transfers (`mindglm.parallel.passage`) with units F, B and W that sleep one unit each. The bubble is the share of
the ranks' time in which they do not sleep: whatever transfers and Python cost is in it. Prints a markdown table; exit
code 1 when a bubble is more than --bar from its formula.
"""

import argparse
import sys
import time

from mindglm.plan import schedules
from tests.benchmarks import jobs

WIDTH = 256
"""Numbers of a message."""
FORMULAS = {"gpipe": "(p-1)/(m+p-1)", "1f1b": "(p-1)/(m+p-1)", "interleaved": "(p-1)/(2m+p-1)",
            "zb_h1": "(p-1)/(3m+p-1)"}
CHUNKS = {"interleaved": 2}


def formula(kind: str, p: int, m: int) -> float:
    """Share of the time in which ranks wait, by the papers named in plan/schedules.py."""
    of = {"gpipe": m, "1f1b": m, "interleaved": CHUNKS["interleaved"] * m, "zb_h1": 3 * m}[kind]
    return (p - 1) / (of + p - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--kinds", nargs="+", default=["1f1b", "zb_h1"], choices=list(FORMULAS))
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--unit", type=float, default=1.0, help="seconds of a forward")
    parser.add_argument("--bar", type=float, default=0.1, help="largest relative difference from the formula")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(jobs.begin(args.worker))
        return 0
    options = {"kinds": args.kinds, "micro_batches": args.micro_batches, "unit": args.unit}
    rows, worst = [], 0.0
    for p in args.ranks:
        for kind, seconds in jobs.results("tests.benchmarks.bubble", p, options).items():
            m = args.micro_batches
            busy = 3 * m * args.unit  # of a rank, whatever its chunks
            measured, expected = 1 - busy / seconds, formula(kind, p, m)
            worst = max(worst, abs(measured / expected - 1))
            ideal = busy / (1 - expected)
            how = "sleeping units" if kind == "zb_h1" else "executor and tape"
            rows.append(f"| {kind} | {p} | {m} | {how} | {seconds:.2f} s | {ideal:.2f} s | {measured:.1%} | "
                        f"{FORMULAS[kind]} = {expected:.1%} | {measured / expected - 1:+.1%} |")
    print("| schedule | p | m | run by | step | by formula | bubble | formula | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\nunit {args.unit:g} s; largest difference {worst:.1%} (bar {args.bar:.0%})")
    return int(worst > args.bar)


def work(options: dict) -> None:
    """One rank: every schedule once in haste, to have all connections, then once in earnest."""
    from mindglm.parallel import transport

    found = {}
    for kind in options["kinds"]:
        for unit in (0.001, options["unit"]):
            step = stepper(kind, transport.world(), options["micro_batches"], unit)
            transport.barrier()
            start = time.monotonic()  # one clock for all processes of a machine
            step()
            spans = transport.gather_objects((start, time.monotonic()))
            found[kind] = max(end for _, end in spans) - min(begun for begun, _ in spans)
    jobs.say(options, found)


def stepper(kind: str, p: int, m: int, unit: float):
    """A function that runs one step of a schedule on this rank."""
    from mindspore import Tensor

    from mindglm.parallel import transport
    from mindglm.parallel.passage import peers_of
    from mindglm.parallel.pipeline import Executor
    from tests.benchmarks.sleepers import SleepingPassage, SleepingStage

    table = schedules.build(kind, p, m, CHUNKS.get(kind, 1))
    ranks = range(p)
    if table.splits_backward:
        peers = peers_of(ranks)
        return lambda: SleepingPassage(table, ranks, peers, unit, WIDTH).all()
    place, last = transport.rank(), p * table.chunks - 1
    stages = [SleepingStage(number == 0, number == last, unit / table.chunks, WIDTH)
              for number in range(place, last + 1, p)]
    executor = Executor(stages, table, ranks, inputs=lambda batch: batch, loss=lambda y, _: (y.sum(), Tensor(1.0)))
    return lambda: executor([()] * m)


if __name__ == "__main__":
    sys.exit(main())
