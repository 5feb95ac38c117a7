"""Turn images and captions into a dataset folder.

    mindglm prepare --images DIR --captions FILE.jsonl --model DIR --output DIR --height 128 --width 128
    mindglm prepare --images DIR --model DIR --output DIR --bucket 1024x1024 --bucket 768x1344 --bucket 1344x768

With several buckets each picture goes to the one that changes it least: the least cut away, then the nearest
resolution, and never enlarged more than twice.

Each line of the captions file is {"file": "path below --images", "caption": "text"}, with "split": "train" or
"held_out" where it shall not be drawn. Refused files are counted and listed with their reason in refused.jsonl of
the dataset folder. Running the command again reuses what is finished.
"""

import argparse

from mindglm.cli.types import bucket, count, share, size
from mindglm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images")
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="JSONL file, an image and its caption a line (default: captions.jsonl in --images)",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="released-layout folder with the encoders (not for --pixels-only)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="dataset folder to write")
    parser.add_argument("--height", type=size, help="pixels of every prepared image, a multiple of 32")
    parser.add_argument("--width", type=size, help="pixels of every prepared image, a multiple of 32")
    parser.add_argument(
        "--bucket",
        type=bucket,
        action="append",
        default=[],
        metavar="WIDTHxHEIGHT",
        help="in place of --height and --width: a size of prepared images; may be given again",
    )
    parser.add_argument(
        "--held-out", type=share, default=0.05, metavar="SHARE", help="share kept for validation (default %(default)s)"
    )
    parser.add_argument(
        "--pixels-only", action="store_true", help="store pixels alone, to train the VAE or the tokenizer"
    )
    parser.add_argument(
        "--shard-size",
        type=count,
        default=256,
        metavar="N",
        help="pictures a file; with buckets a file of each size (default %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    from mindglm.data import prepare

    single = (args.height, args.width)
    if args.bucket and single != (None, None):
        raise UserError("--bucket and --height or --width were given; give one size as --height and --width, or all of "
                        "them as --bucket WIDTHxHEIGHT")
    if not args.bucket and None in single:
        raise UserError("no size was given; expected --height and --width, or --bucket WIDTHxHEIGHT once or more")
    prepare.run(
        images=args.images,
        captions=args.captions,
        model_dir=args.model,
        output=args.output,
        sizes=args.bucket or [single],
        held_out=args.held_out,
        pixels_only=args.pixels_only,
        shard_size=args.shard_size,
    )
