"""What the tools share: how they end and how they show progress."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from mindglm.errors import UserError, exit_code


def run(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int | None],
        arguments: list[str] | None = None) -> int:
    """Parses, runs and returns the exit code: the command's own, 2 for bad input, 130 or 143 when stopped.

    SIGTERM is turned into an exception, so that a half-written folder is removed on the way out.
    """
    args = parser.parse_args(arguments)
    outcome: list[int | None] = [None]

    def call() -> None:
        try:
            outcome[0] = command(args)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            raise UserError(f"{error.filename or 'file system'}: {error.strerror or error}") from error

    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return exit_code(call) or outcome[0] or 0
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def progress(total: int, what: str = "") -> Iterator[Callable[[int], object]]:
    """A bar over `total` bytes on standard error: tqdm's, or where that is not installed a line every ten seconds."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield _Lines(total, what).add
        return
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5) as bar:
        yield bar.update


class _Lines:
    def __init__(self, total: int, what: str):
        self._total, self._what, self._done, self._said = total, what, 0, time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said > 10 or self._done == self._total:
            self._said = time.monotonic()
            print(f"{self._what} {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB", file=sys.stderr)


def size(count: int) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count = count / 1000
    return f"{count:,.2f} GB"
