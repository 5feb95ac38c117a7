"""Ctrl-C stays Python's own in a process that computes with MindSpore.

Every call of a compiled graph installs MindSpore's handler of SIGINT over Python's; it sends SIGTERM to its own
process. Here every thread blocks SIGINT, one waits for it, and the main thread runs the handler that Python knows of.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from mindglm.errors import EXIT_INTERRUPTED

WAKE = signal.SIGURG
"""Does nothing where nobody handles it; handled, it wakes the main thread from a wait for a lock."""


_heard = threading.Event()


def heard() -> bool:
    """Whether SIGINT has come since `kept` was entered. Where the process goes on, somebody swallowed the interrupt."""
    return _heard.is_set()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Context in which SIGINT reaches Python's handler, whatever MindSpore installs. To be entered before its import.

    A second one that comes before the main thread could attend to the first, as in a long compilation, ends the process
    at once. Threads that already run would not block it; processes started inside do.
    """
    waiting = threading.Event()  # for the main thread
    before = signal.signal(WAKE, lambda *_: waiting.clear())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_pass_on, args=(waiting,), name="interrupts", daemon=True).start()
    try:
        yield
    finally:  # the interpreter's end can be interrupted again
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(WAKE, before)


def leave() -> NoReturn:
    """End the interrupted process here and now: exit code 130.

    Where the import of MindSpore was cut short, the interpreter's own end would run into what is missing, and abort.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(EXIT_INTERRUPTED)


def _pass_on(waiting: threading.Event) -> None:
    while True:
        signal.sigwait({signal.SIGINT})
        if waiting.is_set():
            print("mindglm: interrupted twice; ended at once", file=sys.stderr)
            leave()
        waiting.set()
        _thread.interrupt_main(signal.SIGINT)
        _heard.set()
        signal.pthread_kill(threading.main_thread().ident, WAKE)
