"""Name the first step at which two runs part, and whether data, random numbers or numerics parted first.

    mindglm audit output/run_a output/run_b
    mindglm audit output/run_a              only checks that its ledger is whole

A run is its output_dir, one of its checkpoint/iteration_ folders, or a ledger.jsonl. Exit code: 0 the same run, 1 they
part, 2 bad input.
"""

import argparse
import pathlib

from mindglm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="RUN_A")
    parser.add_argument("b", metavar="RUN_B", nargs="?")
    parser.add_argument("--tolerance", type=_tolerance, metavar="X", help="relative difference of losses that counts "
                        "as rounding (default 1e-5; 0: the same bits or not)")


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError(text)
    return value


def run(args: argparse.Namespace) -> int:
    from mindglm.ledger import audit, chain  # NumPy: `mindglm --help` does without

    tolerance = audit.TOLERANCE if args.tolerance is None else args.tolerance
    paths = [audit.ledger_of(name) for name in (args.a, args.b) if name is not None]
    ledgers = [chain.read(path) for path in paths]
    for path, lines in zip(paths, ledgers):
        if not lines:
            raise UserError(f"{path}: empty")
        print(f"{path}: {len(lines)} lines, the hash chain is whole, {audit.span(lines)}")
    if len(ledgers) == 1:
        return 0
    found = audit.compare(*ledgers, tolerance)
    for note in (*found.notes, *_recipes(*paths)):
        print(f"note: {note}")
    if found.rounded_from is not None:
        print(f"rounding from step {found.rounded_from} on (largest relative difference {found.largest:.2g})")
    if found.parted is None:
        print(f"the same run: {found.steps} steps with the same samples, random numbers and "
              f"{'losses' if found.rounded_from is None else f'losses to {tolerance:g}'}")
        return 0
    print(f"the runs part at step {found.parted}: {found.cause} first; {found.detail}")
    return 1


def _recipes(ours: pathlib.Path, theirs: pathlib.Path) -> list[str]:
    """How the recipes of the two runs differ in what changes numbers, where both have a checkpoint."""
    from mindglm.checkpoint import training
    from mindglm.checkpoint.stored import Checkpoint
    from mindglm.recipe import differences

    folders = [training.find(path.parent) for path in (ours, theirs)]
    if None in folders:
        return []
    try:
        changes = differences.between(*(Checkpoint(folder).recipe_text for folder in folders))
    except (UserError, ValueError) as error:
        return [f"their recipes cannot be compared: {error}"]
    return [f"their recipes differ in {change.text} ({change.reason})" for change in changes
            if change.kind != differences.SAFE]
