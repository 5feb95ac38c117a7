"""Compares two checkpoints tensor by tensor: the first that differ, and the largest error.

    python -m ckpt_tools.diff GLM-Image my-GLM-Image
    python -m ckpt_tools.diff output/glm_image/dit_7b_sft GLM-Image --weights live

Both may be anything that inspect opens. A training checkpoint is compared as the component that it trains; two of them
as they are, optimizer moments included.
"""

import argparse
import sys

from ckpt_tools import command
from mindglm.checkpoint import comparison, training
from mindglm.checkpoint.places import as_component, open_place
from mindglm.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 equal; 1 they differ; 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m ckpt_tools.diff", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--tolerance", type=float, default=0.0, help="absolute difference of values that passes")
    parser.add_argument("--limit", type=int, default=20, help="how many differences are listed")
    parser.add_argument("--weights", choices=training.WEIGHTS, default="auto", help="of training checkpoints")
    return command.run(parser, _diff, arguments)


def _diff(args: argparse.Namespace) -> int:
    a, b = open_place(args.a), open_place(args.b)
    if (a.kind == "training") != (b.kind == "training"):
        a, b = as_component(a, args.weights), as_component(b, args.weights)
        if not set(a.groups) & set(b.groups):
            raise UserError(f"{args.a} holds {', '.join(a.groups)}, {args.b} holds {', '.join(b.groups)}: nothing to "
                            "compare")
        shared = set(a.groups) & set(b.groups)
        for place in (a, b):
            for label in set(place.groups) - shared:
                del place.groups[label]
    count = sum(len(entries) for entries in a.groups.values())
    with command.progress(sum(e.nbytes for entries in a.groups.values() for e in entries.values()), "diff") as on_bytes:
        listed, differing, worst = comparison.first(comparison.differences(a, b, args.tolerance, on_bytes), args.limit)
    for difference in listed:
        print(f"{difference.name}: {difference.what}")
    if differing > len(listed):
        print(f"... and {differing - len(listed)} more")
    print(f"{count} tensors compared, {differing} differences, largest error {worst:.3g}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
