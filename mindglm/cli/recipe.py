"""Check a recipe, or print it with every default written out."""

import argparse

from mindglm import recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("show", "print the recipe resolved: defaults filled in, overrides applied"),
        ("check", "say whether the recipe is valid, with every mistake at once"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("recipe", metavar="FILE")
        action.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="dotted keys that replace those of the recipe"
        )


def run(args: argparse.Namespace) -> None:
    loaded = recipe.load(args.recipe, args.overrides)
    if args.action == "show":
        print(recipe.to_yaml(loaded), end="")
    else:
        runner = loaded.runner_config
        print(
            f"{args.recipe}: valid. {loaded.trainer.type} on {loaded.model_type},"
            f" {runner.stop_step} steps of {runner.global_batch_size} samples, into {loaded.output_dir}"
        )
