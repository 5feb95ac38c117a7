"""Train a model by a recipe.

Alone:      mindglm train recipes/nano/ar.yaml runner_config.stop_step=10
2 workers:  bash launch/train_node.sh recipes/nano/ar.yaml parallel_config.data_parallel=2
"""

import argparse

from mindglm import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, for instance recipes/nano/ar.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="dotted keys that replace those of the recipe"
    )
    parser.add_argument("--fallback", action="store_true", help="when the newest checkpoint is damaged, set it "
                        "aside and go on from the one before it")


def run(args: argparse.Namespace) -> None:
    loaded = recipe.load(args.recipe, args.overrides)
    from mindglm.parallel.transport import exit_if_scheduler

    # msrun starts one scheduler process with the same command: it must never come to the heavy imports below.
    exit_if_scheduler()
    from mindglm.train import trainer

    trainer.run(loaded, args.fallback)
