"""The one exception that means "the user can mend this", and how a command ends: message, exit code, no traceback."""

import sys
from collections.abc import Callable

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130


class UserError(Exception):
    """Bad input: a recipe, data, checkpoint or environment that cannot work.

    The message says what was given, what was expected and what to do.
    """


def exit_code(command: Callable[[], int | None]) -> int:
    """Run `command` and return how the process should exit: 0 done, 2 bad input, 130 Ctrl-C; faults pass through.

    A command that answers yes or no returns its own code; None is 0.
    """
    try:
        return command() or 0
    except UserError as error:
        print(f"mindglm: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("mindglm: interrupted; the same command goes on from what is complete", file=sys.stderr)
        return EXIT_INTERRUPTED
