"""What the transport carries: seconds and MB/s by size of message, for each operation the trainer uses.

    python -m tests.benchmarks.transport --ranks 2

Runs `mindglm.parallel.transport` and `transport_peers` themselves, so what a backend lacks is measured as composed.
A size is that of one rank's Tensor; the speed is that size over the time. Medians of --rounds after one that is not
counted. Prints a markdown table.
"""

import argparse
import statistics
import sys
import time

from tests.benchmarks import jobs

SIZES = (4, 2**12, 2**16, 2**20, 2**24, 2**26)
"""Bytes."""
NAMES = {"send": "send and receive", "all_reduce": "all-reduce", "reduce_scatter": "reduce-scatter",
         "all_gather": "all-gather", "broadcast": "broadcast"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(jobs.begin(args.worker))
        return 0
    found = jobs.results("tests.benchmarks.transport", args.ranks, {"rounds": args.rounds})
    print(f"| {args.ranks} ranks | " + " | ".join(_bytes(size) for size in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for name, seconds in found.items():
        print(f"| {NAMES[name]} | " + " | ".join(_cell(size, s) for size, s in zip(SIZES, seconds)) + " |")
    return 0


def _bytes(size: int) -> str:
    units = ((2**20, "MiB"), (2**10, "KiB"), (1, "B"))
    return next(f"{size // of} {name}" for of, name in units if size >= of)


def _cell(size: int, seconds: float) -> str:
    speed = f", {size / seconds / 1e6:.0f} MB/s" if size >= 2**16 else ""
    return f"{1000 * seconds:.1f} ms{speed}"


def work(options: dict) -> None:
    """One rank: all operations at all sizes."""
    found = {name: [] for name in NAMES}
    for size in SIZES:
        for name, operation in operations(size).items():
            found[name].append(statistics.median([one_round(operation) for _ in range(options["rounds"] + 1)][1:]))
    jobs.say(options, found)


def one_round(operation) -> float:
    """Seconds from the first rank's start until the last one is done."""
    from mindglm.parallel import transport

    transport.barrier()
    start = time.monotonic()  # one clock for all processes of a machine
    operation()
    spans = transport.gather_objects((start, time.monotonic()))
    return max(end for _, end in spans) - min(begun for begun, _ in spans)


def operations(size: int) -> dict:
    """{name: function without arguments} for Tensors of `size` bytes on this rank; reduce-scatter needs a multiple."""
    import numpy as np
    from mindspore import Tensor, float32

    from mindglm.parallel import transport
    from mindglm.parallel.transport_peers import Peers

    rank, world = transport.rank(), transport.world()
    count = size // 4
    padded = -(-count // world) * world
    peers, tensor, flat = Peers(), Tensor(np.ones(count, np.float32)), Tensor(np.ones(padded, np.float32))

    def send():
        """From rank 0 to rank 1."""
        if rank == 0:
            peers.send((tensor,), 1, "a message")
            peers.finish()
        elif rank == 1:
            peers.post((((count,), float32),), 0, "a message")
            peers.take(0, "a message")[0].asnumpy()

    return {"send": send, "all_reduce": lambda: transport.all_reduce_sum(tensor).asnumpy(),
            "reduce_scatter": lambda: transport.begin_reduce_scatter_sum(flat)().asnumpy(),
            "all_gather": lambda: transport.all_gather(tensor).asnumpy(),
            "broadcast": lambda: transport.broadcast(tensor, 0).asnumpy()}


if __name__ == "__main__":
    sys.exit(main())
