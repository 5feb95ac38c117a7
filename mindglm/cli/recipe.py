"""Check a recipe, print it resolved, compare two, explain a key.

    mindglm recipe check recipes/glm_image/*.yaml
    mindglm recipe show recipes/nano/dit.yaml runner_config.stop_step=10
    mindglm recipe diff recipes/glm_image/ar_9b_pretrain_256.yaml recipes/glm_image/ar_9b_sft.yaml
    mindglm recipe explain preview_weight
    mindglm recipe schema > recipe.schema.json
"""

import argparse
import json

from mindglm import recipe
from mindglm.errors import UserError

OVERRIDES_HELP = "dotted keys that replace those of the recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=summary, description=summary)

    check = action("check", "say whether recipes are valid, with every mistake of each at once")
    check.add_argument("words", nargs="+", metavar="FILE | key=value", help=f"recipe files; {OVERRIDES_HELP}")
    show = action("show", "print the recipe resolved, with the origin of every value")
    show.add_argument("recipe", metavar="FILE")
    show.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=OVERRIDES_HELP)
    show.add_argument("--plain", action="store_true", help="without the origins")
    diff = action("diff", "compare two recipes as they resolve, and say what the change would mean for a resumed run")
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")
    diff.add_argument("overrides", nargs="*", default=[], metavar="key=value",
                      help="dotted keys that replace those of B")
    explain = action("explain", "say what a key means, what it takes and its default")
    explain.add_argument("key", nargs="?", metavar="KEY", help="dotted, or its last part; without it: the sections")
    action("schema", "print the JSON Schema of recipes, for editors")


def run(args: argparse.Namespace) -> None:
    {"check": _check, "show": _show, "diff": _diff, "explain": _explain, "schema": _schema}[args.action](args)


def _check(args: argparse.Namespace) -> None:
    overrides = [word for word in args.words if "=" in word]
    files = [word for word in args.words if "=" not in word]
    if not files:
        raise UserError(f"given {' '.join(overrides)}, expected a recipe file before the overrides")
    faults = []
    for path in files:
        try:
            loaded = recipe.load(path, overrides)
        except UserError as error:
            told = str(error)
            faults.append(told if len(files) == 1 or told.startswith(path) else f"{path}: {told}")
            continue
        runner = loaded.runner_config
        print(
            f"{path}: valid. {loaded.trainer.type} on {loaded.model_type},"
            f" {runner.stop_step} steps of {runner.global_batch_size} samples, into {loaded.output_dir}"
        )
    if faults:
        raise UserError("\n".join(faults))


def _show(args: argparse.Namespace) -> None:
    from mindglm.recipe import answers

    resolved = recipe.resolve(args.recipe, args.overrides)
    print(recipe.to_yaml(resolved.recipe) if args.plain else answers.show(resolved), end="")


def _diff(args: argparse.Namespace) -> None:
    from mindglm.recipe import answers

    print(answers.diff(recipe.resolve(args.first), recipe.resolve(args.second, args.overrides)), end="")


def _explain(args: argparse.Namespace) -> None:
    from mindglm.recipe import answers

    print(answers.contents() if args.key is None else answers.explain(args.key), end="")


def _schema(args: argparse.Namespace) -> None:
    from mindglm.recipe import json_schema

    print(json.dumps(json_schema.build(), indent=2, ensure_ascii=False))
