"""SIGTERM and Ctrl-C ask the run to stop after the current step; a second one stops it at once."""

import signal
import threading

from mindglm import interrupts

EXIT_TERMINATED = 143


class StopRequests:
    """Context in which the two signals only set `terminated` and `interrupted`."""

    def __init__(self):
        self.terminated = self.interrupted = False
        self._before = {}

    def __enter__(self):
        self.interrupted = interrupts.heard()  # while the run was made ready
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        if self.terminated or self.interrupted:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # mindglm/interrupts.py blocks SIGINT
            signal.raise_signal(number)
        self.terminated = self.terminated or number == signal.SIGTERM
        self.interrupted = self.interrupted or number == signal.SIGINT

    @property
    def flags(self) -> tuple[bool, bool]:
        return self.terminated, self.interrupted
