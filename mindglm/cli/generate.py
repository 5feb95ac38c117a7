"""Generate pictures from prompts.

    mindglm generate --model DIR --prompt 'a red sign that says "OPEN"' --output sign.png

Text to be drawn stands in quotes inside the prompt. Several prompts or images come out as one grid, a row a prompt.
Same model, prompts, sizes and seed: same picture.
"""

import argparse

from mindglm.cli.types import count, natural, size, weight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="released-layout folder with all components")
    parser.add_argument("--prompt", required=True, action="append", metavar="TEXT", help="may be given several times")
    parser.add_argument("--height", type=size, help="pixels, a multiple of 32 (default: what the model was made for)")
    parser.add_argument("--width", type=size, help="pixels, a multiple of 32 (default: what the model was made for)")
    parser.add_argument("--steps", type=count, default=50, help="denoising steps (default %(default)s)")
    parser.add_argument(
        "--guidance-scale", type=weight, default=1.5, help="1 or less: no guidance (default %(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="default %(default)s")
    parser.add_argument("--num-images", type=count, default=1, help="pictures a prompt (default %(default)s)")
    parser.add_argument("--output", required=True, metavar="FILE.png")


def run(args: argparse.Namespace) -> None:
    from mindglm import generate

    generate.cli_run(
        model=args.model,
        prompts=args.prompt,
        height=args.height,
        width=args.width,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        num_images=args.num_images,
        output=args.output,
    )
