"""Where a model is cut into pipeline stages: contiguous ranges of its units (embedding, layers, head)."""

import itertools
from collections.abc import Iterator, Sequence

from mindglm.errors import UserError

Range = tuple[int, int]
"""(first unit, one past the last)."""


def balanced(costs: Sequence[float], stages: int) -> tuple[Range, ...]:
    """The cut whose dearest stage is cheapest; no stage is empty.

    Among equally good cuts, early stages get the fewest units: they keep the most micro-batches in flight.

    Args:
        costs: of every unit, e.g. floating point operations.
    Raises UserError when there are fewer units than stages.
    """
    units = len(costs)
    if not 1 <= stages <= units:
        raise UserError(f"{units} units (layers, embedding, head) cannot be cut into {stages} pipeline stages; lower "
                        "parallel_config.pipeline_stage or the number of chunks")
    before = [0, *itertools.accumulate(costs)]
    # best[s][i]: smallest possible cost of the dearest of the s stages that hold the units from i on.
    best: list[dict[int, float]] = [{units: 0.0}]
    for s in range(1, stages + 1):
        best.append({i: min(max(before[j] - before[i], best[s - 1][j]) for j in best[s - 1] if j > i)
                     for i in range(units) if any(j > i for j in best[s - 1])})
    limit, start, ranges = best[stages][0], 0, []
    for s in range(stages - 1, -1, -1):
        stop = next(j for j in range(start + 1, units + 1)
                    if j in best[s] and before[j] - before[start] <= limit and best[s][j] <= limit)
        ranges.append((start, stop))
        start = stop
    return tuple(ranges)


def explicit(counts: Sequence[int], units: int, stages: int) -> tuple[Range, ...]:
    """The ranges of a list that gives the number of units of every stage. UserError when it does not add up."""
    if len(counts) != stages or sum(counts) != units or min(counts, default=0) < 1:
        raise UserError(f"the list of units per pipeline stage is {list(counts)} (sum {sum(counts)}); expected "
                        f"{stages} positive numbers that sum to the model's {units} units")
    ends = list(itertools.accumulate(counts))
    return tuple(zip([0, *ends[:-1]], ends))


def even(costs: Sequence[float], stages: int, chunks: int) -> tuple[Range, ...]:
    """A cut into stages * chunks parts that loads the ranks alike: rank r holds the parts r, r + stages, ...

    `balanced` keeps every part cheap, which leaves ranks of several parts uneven. From its cut on, boundaries move by
    one unit as long as that makes the dearest rank cheaper, or as cheap with a cheaper dearest part.
    """
    ranges = list(balanced(costs, stages * chunks))
    before = [0, *itertools.accumulate(costs)]

    def load(cut: Sequence[Range]) -> tuple[float, float]:
        parts = [before[b] - before[a] for a, b in cut]
        return max(sum(parts[rank::stages]) for rank in range(stages)), max(parts)

    best, moved = load(ranges), True
    while moved:
        moved = False
        for trial in _moves(ranges):
            found = load(trial)
            if found < best:
                best, ranges, moved = found, trial, True
                break
    return tuple(ranges)


def _moves(ranges: list[Range]) -> Iterator[list[Range]]:
    """Every cut in which one part is a unit smaller and another a unit larger."""
    for giver, taker in itertools.permutations(range(len(ranges)), 2):
        sizes = [b - a for a, b in ranges]
        if sizes[giver] > 1:
            sizes[giver], sizes[taker] = sizes[giver] - 1, sizes[taker] + 1
            ends = list(itertools.accumulate(sizes))
            yield list(zip([0, *ends[:-1]], ends))
