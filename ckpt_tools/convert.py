"""Converts checkpoints: released folder <-> mindglm folder, training checkpoint or GLM-4-9B-0414 -> either.

    python -m ckpt_tools.convert --from hf --to mindglm GLM-Image GLM-Image-mindglm
    python -m ckpt_tools.convert --from mindglm --to hf GLM-Image-mindglm GLM-Image-again
    python -m ckpt_tools.convert --from mindglm --to hf output/glm_image/dit_7b_sft my-GLM-Image --weights ema
    python -m ckpt_tools.convert --from glm4 --to mindglm GLM-4-9B-0414 GLM-4-9B-as-GLM-Image --base GLM-Image

README.md beside this file says what each folder is. Needs NumPy; PyYAML for training checkpoints; tqdm if there.
"""

import argparse
import functools
import pathlib
import sys

from ckpt_tools import command
from mindglm.checkpoint import conversion, glm4, training
from mindglm.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, nothing written."""
    parser = argparse.ArgumentParser(prog="python -m ckpt_tools.convert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="folder to read; it is not changed")
    parser.add_argument("target", metavar="DST", help="folder to write; it appears whole or not at all")
    parser.add_argument("--from", dest="source_kind", choices=("hf", "mindglm", "glm4"), required=True,
                        help="hf: released layout. mindglm: mindglm folder, or a training run, its checkpoint/ or one "
                             "iteration folder. glm4: GLM-4-9B-0414 in its Hugging Face form")
    parser.add_argument("--to", dest="target_kind", choices=("hf", "mindglm"), required=True)
    parser.add_argument("--dtype", choices=conversion.DTYPES,
                        help="cast the weights; released: for each component what zai-org/GLM-Image stores. Left out: "
                             "as stored (for a training checkpoint: released)")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    run = parser.add_argument_group("training checkpoints")
    run.add_argument("--weights", choices=training.WEIGHTS, default="auto",
                     help="moving average or live weights; auto: the average if the run keeps one")
    run.add_argument("--step", type=int, help="which checkpoint of the run; left out: the newest")
    start = parser.add_argument_group("GLM-4 and training checkpoints")
    start.add_argument("--base", metavar="DIR", help="model folder with what SRC does not hold: structure, vision "
                       "tower, VQ, other components. Left out: for a run its pretrained_model_dir, for glm4 none")
    start.add_argument("--config", metavar="FILE", help="glm4 without --base: config.json of the AR generator to make; "
                       "left out: the released one")
    start.add_argument("--seed", type=int, default=0, help="glm4: of the new rows and the head")
    return command.run(parser, _convert, arguments)


def _convert(args: argparse.Namespace) -> None:
    common = {"to": args.target_kind, "dtype": args.dtype, "overwrite": args.overwrite,
              "progress": functools.partial(command.progress, what=pathlib.Path(args.target).name)}
    if args.source_kind == "glm4":
        _only(args, "step")
        written = glm4.convert(args.source, args.target, base=args.base, config=args.config, seed=args.seed, **common)
        if args.base is None:
            print(f"{written}: decoder and head only; vision tower, VQ and the other components need --base",
                  file=sys.stderr)
    elif args.source_kind == "mindglm" and (folder := training.find(args.source, args.step)) is not None:
        _only(args, "config")
        written = training.export(folder, args.target, weights=args.weights, base=args.base, **common)
    else:
        _only(args, "base", "config", "step")
        if args.source_kind == args.target_kind:
            raise UserError(f"--from {args.source_kind} --to {args.target_kind}: {args.source} is no training "
                            "checkpoint; give two different kinds")
        written = conversion.convert(args.source, args.target, **common)
    print(written)


def _only(args: argparse.Namespace, *absent: str) -> None:
    """Options that mean nothing for this source are mistakes."""
    given = [name for name in absent if getattr(args, name) is not None]
    if given:
        raise UserError(f"--{given[0]} {getattr(args, given[0])}: means nothing for {args.source} read as "
                        f"{args.source_kind}; leave it out")


if __name__ == "__main__":
    sys.exit(main())
