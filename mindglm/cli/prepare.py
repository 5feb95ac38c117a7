"""Turn images and captions into a dataset folder.

    mindglm prepare --images DIR --captions FILE.jsonl --model DIR --output DIR --height 128 --width 128

Each line of the captions file is {"file": "path below --images", "caption": "text"}, with "split": "train" or
"held_out" where it shall not be drawn. Refused files are counted and listed with their reason in refused.jsonl of
the dataset folder. Running the command again reuses what is finished.
"""

import argparse

from mindglm.cli.types import count, share, size


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
    parser.add_argument("--height", required=True, type=size, help="pixels of every prepared image, a multiple of 32")
    parser.add_argument("--width", required=True, type=size, help="pixels of every prepared image, a multiple of 32")
    parser.add_argument(
        "--held-out", type=share, default=0.05, metavar="SHARE", help="share kept for validation (default %(default)s)"
    )
    parser.add_argument(
        "--pixels-only", action="store_true", help="store pixels alone, to train the VAE or the tokenizer"
    )
    parser.add_argument(
        "--shard-size", type=count, default=256, metavar="N", help="samples a file (default %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    from mindglm.data import prepare

    prepare.run(
        images=args.images,
        captions=args.captions,
        model_dir=args.model,
        output=args.output,
        height=args.height,
        width=args.width,
        held_out=args.held_out,
        pixels_only=args.pixels_only,
        shard_size=args.shard_size,
    )
