"""The one exception that means "the user can mend this", and how a command ends: message, exit code, no traceback."""

import os
import select
import sys
from collections.abc import Callable

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
EXIT_PIPE = 141
"""As shells tell of a program that SIGPIPE ended."""
STDOUT = 1


class UserError(Exception):
    """Bad input: a recipe, data, checkpoint or environment that cannot work.

    The message says what was given, what was expected and what to do.
    """


def exit_code(command: Callable[[], int | None]) -> int:
    """Run `command` and return how the process should exit: 0 done, 2 bad input, 130 Ctrl-C; faults pass through.

    A command that answers yes or no returns its own code; None is 0. One whose reader has gone, as behind `| head`,
    ends without a word: 141.
    """
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"mindglm: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (KeyboardInterrupt, ImportError, SystemError, RuntimeError) as error:
        if not _is_of_interrupt(error):
            raise
        print("mindglm: interrupted; the same command goes on from what is complete", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _reader_has_gone():  # another pipe or socket broke: a fault
            raise
        with open(os.devnull, "wb") as nowhere:  # takes what Python still writes at its end
            os.dup2(nowhere.fileno(), STDOUT)
        return EXIT_PIPE


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: C code that it cuts short, as in an import, makes it an error of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
