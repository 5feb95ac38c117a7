"""Do a failed step again on the CPU and say whether data, numerics or a transient fault made it fail.

    mindglm replay output/my_run/capsules/step_00000120

A run that stops after runner_wrapper.max_skipped_steps steps that were not finite leaves such a folder.
"""

import argparse
import os
import pathlib
import sys

from mindglm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("capsule", metavar="CAPSULE", type=pathlib.Path, help="a folder <output_dir>/capsules/step_...")


def run(args: argparse.Namespace) -> None:
    os.environ["MINDGLM_OPS"] = "cpu"  # whatever device is here
    import mindspore as ms

    if ms.get_current_device().device_target != "CPU":
        ms.set_device("CPU")
    from mindglm import recipe
    from mindglm.train import capsule, replay, trainer

    found = capsule.read(args.capsule)
    try:
        dataset, _ = trainer.datasets(recipe.loads(found.recipe_text, str(args.capsule / "recipe.yaml")))
    except UserError as error:
        print(f"mindglm: the run's data are not here ({error})", file=sys.stderr)
        dataset = None
    verdict = replay.judge(found, dataset)
    print(f"{args.capsule}: step {found.about['step']}, {verdict.kind}")
    for reason in verdict.reasons:
        print(f"  {reason}")
