"""Where a model is cut into pipeline stages: contiguous ranges of its units (embedding, layers, head)."""

import itertools
from collections.abc import Sequence

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
