"""Generate pictures from prompts and source images.

    mindglm generate --model DIR --prompt 'a red sign that says "OPEN"' --output sign.png
    mindglm generate --model DIR --prompt 'make it blue' --image sign.png --output blue.png

Text to be drawn stands in quotes inside the prompt. Several prompts or pictures come out as one grid, a row a prompt.
Source images serve every prompt, in the order given; their sides must be multiples of 32 within the model's range.
Same model, prompts, source images, sizes and seed: same picture.
"""

import argparse

from mindglm.cli.types import count, natural, size, weight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="released-layout folder with all components")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="what to draw; may be given several times"
    )
    parser.add_argument("--prompt-file", metavar="FILE", help="more prompts, one a line (UTF-8)")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="source image; may be given several times"
    )
    parser.add_argument("--height", type=size, help="pixels, a multiple of 32 (default: what the model was made for)")
    parser.add_argument("--width", type=size, help="pixels, a multiple of 32 (default: what the model was made for)")
    parser.add_argument("--steps", type=count, default=50, help="denoising steps (default %(default)s)")
    parser.add_argument(
        "--guidance-scale", type=weight, default=1.5, help="1 or less: no guidance (default %(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="default %(default)s")
    parser.add_argument("--num-images", type=count, default=1, help="pictures a prompt (default %(default)s)")
    parser.add_argument(
        "--prior-codes", metavar="FILE.json", help="decode these codes (of --save-prior-codes) instead of drawing codes"
    )
    parser.add_argument("--save-prior-codes", metavar="FILE.json", help="write the codes that were drawn")
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
        images=args.image,
        prompt_file=args.prompt_file,
        prior_codes=args.prior_codes,
        save_prior_codes=args.save_prior_codes,
    )
