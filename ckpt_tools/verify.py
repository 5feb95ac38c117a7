"""Says whether a checkpoint is whole: names, shapes, index, checksums, finite values; reads every tensor once.

    python -m ckpt_tools.verify GLM-Image
    python -m ckpt_tools.verify output/glm_image/dit_7b_sft
"""

import argparse
import sys

from ckpt_tools import command
from mindglm.checkpoint.places import open_place
from mindglm.checkpoint.verification import verify
from mindglm.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 whole; 2 not, every problem listed."""
    parser = argparse.ArgumentParser(prog="python -m ckpt_tools.verify", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="DIR", help="model folder, training run or checkpoint, or safetensors file")
    parser.add_argument("--step", type=int, help="which checkpoint of a run; left out: the newest")
    return command.run(parser, _verify, arguments)


def _verify(args: argparse.Namespace) -> None:
    place = open_place(args.path, args.step)
    entries = [entry for group in place.groups.values() for entry in group.values()]
    with command.progress(sum(entry.nbytes for entry in entries), "verify") as on_bytes:
        problems = verify(args.path, args.step, on_bytes)
    if problems:
        raise UserError(f"{args.path} is not whole:\n" + "\n".join(f"  {problem}" for problem in problems))
    remembered = sum(entry.is_checked for entry in entries)
    print(f"{place.path}: whole ({place.kind}; {len(entries)} tensors read, {remembered} against a checksum)")


if __name__ == "__main__":
    sys.exit(main())
