"""Reads the command line and runs one command.

Exit codes: 0 done; 2 a mistake the user can mend (one message, no traceback); 1 a fault (traceback), or the "no" of a
command that answers yes or no; 130 Ctrl-C.
Nothing here imports MindSpore: `mindglm --help` and `mindglm recipe` answer at once.
"""

import argparse
from collections.abc import Sequence

import mindglm
from mindglm import interrupts
from mindglm.cli import audit, doctor, generate, plan, prepare, recipe, replay, train, triage
from mindglm.errors import EXIT_INTERRUPTED, UserError, exit_code

COMMANDS = {"prepare": prepare, "train": train, "generate": generate, "recipe": recipe, "plan": plan,
            "doctor": doctor, "triage": triage, "audit": audit, "replay": replay}
COMPUTING = {"prepare", "train", "generate", "replay"}
"""Commands that run MindSpore in this process."""

NOT_YET = {
    "evaluate": "measure a model on held-out data",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mindglm",
        description="Train and run GLM-Image with MindSpore.",
        epilog="exit codes: 0 done, 2 a mistake you can mend, 1 a fault, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"mindglm {mindglm.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0].removesuffix(".")
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    for name, summary in NOT_YET.items():
        commands.add_parser(name, help=f"not yet: {summary}", description=f"Not yet: {summary}.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `argv` (default: the process's own) and returns the exit code; argparse exits by itself on bad usage."""
    parser = build_parser()
    args, extra = parser.parse_known_args(argv)

    def command():
        if args.command in NOT_YET:
            raise UserError(
                f"`mindglm {args.command}` does not exist yet: it will {NOT_YET[args.command]}. "
                f"Commands that work: {', '.join(COMMANDS)}"
            )
        if hasattr(args, "overrides"):  # argparse takes no more of them once an option stood between
            args.overrides = [*args.overrides, *(word for word in extra if not word.startswith("-"))]
            extra[:] = [word for word in extra if word.startswith("-")]
        if extra:
            parser.error(f"{args.command}: unknown arguments: {' '.join(extra)} (see mindglm {args.command} --help)")
        return args.run(args)

    if argv is not None or args.command not in COMPUTING:  # a caller with words of its own keeps its signals, too
        return exit_code(command)
    with interrupts.kept():
        code = exit_code(command)
    if code == EXIT_INTERRUPTED:
        interrupts.leave()
    return code
