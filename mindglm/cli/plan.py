"""Say beforehand whether a run fits memory, how long it takes and what bounds it.

Imports no MindSpore and answers at once. Times are planned from public figures of the machine, never measured.
"""

import argparse
import dataclasses
import json

from mindglm import recipe
from mindglm.cli.types import count, natural, weight
from mindglm.errors import UserError
from mindglm.recipe import sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a recipe file, for instance recipes/glm_image/ar_9b_pretrain_256.yaml")
    add("overrides", nargs="*", default=[], metavar="key=value", help="dotted keys that replace those of the recipe")
    add("--hardware", metavar="NAME|FILE", help="atlas800t-a2, atlas900-a3, h100, cpu, or a .yaml file of measured "
        "figures (base: NAME and what replaces it); default: atlas800t-a2 when the recipe asks for Ascend, else cpu")
    add("--nodes", type=count, metavar="N", help="fill N nodes with data-parallel copies of the recipe's pipeline")
    add("--size", action="append", type=size_share, default=[], metavar="WIDTHxHEIGHT[=SHARE]",
        help="of the pictures; may be repeated; default: what the dataset holds, else 1024x1024")
    add("--prompt-tokens", type=count, default=64, metavar="N", help="of a caption, for the AR generator (64)")
    add("--glyph-tokens", type=natural, default=32, metavar="N", help="of a caption, for the DiT (32)")
    add("--json", action="store_true", help="numbers instead of words")
    add("--html", metavar="FILE", help="also write a page with the schedule and the memory as pictures")
    add("--search", action="store_true", help="look for the best layouts on these nodes instead")


def size_share(text: str) -> tuple[int, int, float]:
    """1024x768=2 -> (height, width, weight)."""
    name, _, share = text.partition("=")
    size = sizes.parse(name)
    if size is None or sizes.fault(size):
        raise argparse.ArgumentTypeError(f"given {text!r}, expected WIDTHxHEIGHT in pixels with =SHARE behind it where "
                                         f"there are several, {sizes.fault(size) if size else 'such as 1024x768=3'}")
    return *size, weight(share or "1")


def run(args: argparse.Namespace) -> None:
    from mindglm.models import workload as workloads
    from mindglm.plan import hardware, layout, planner, search, text

    loaded = recipe.load(args.recipe, args.overrides, to_plan=True)
    machine = hardware.load(args.hardware or ("atlas800t-a2" if loaded.context.device_target == "Ascend" else "cpu"))
    total = sum(share for *_, share in args.size)
    if args.size and not total:
        raise UserError("--size: given 0 as every share, expected one above 0; leave =0 out")
    shares = [(height, width, share / total) for height, width, share in args.size]
    work = workloads.of_recipe(loaded, machine.form, shares, args.prompt_tokens, args.glyph_tokens)
    stated = layout.of_recipe(loaded)
    if args.search:
        devices = args.nodes * machine.devices_per_node if args.nodes else stated.devices
        found = search.best(work, machine, devices)
        print(json.dumps(search.as_numbers(found, args.recipe)) if args.json else search.told(found, args.recipe))
        plan = dataclasses.replace(found.plans[0], stated=stated) if found.plans else None
    else:
        filling = layout.on_devices(stated, work, args.nodes * machine.devices_per_node) if args.nodes else stated
        plan = planner.plan(work, filling, machine, stated=stated)
        print(json.dumps(text.as_numbers(plan, args.recipe)) if args.json else text.told(plan, args.recipe))
    if args.html and plan:
        from mindglm.plan import page

        page.write(plan, args.recipe, args.html)
