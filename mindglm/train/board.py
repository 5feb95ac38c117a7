"""TensorBoard events, written on the spot.

tensorboardX's SummaryWriter writes in a thread behind a queue of ten: on a full disk the thread dies of its OSError and
the next few events block the run for ever (2.6.5). Its parts below that do the same without thread and queue.
"""

import os
import pathlib
import time

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

FLUSH_SECONDS = 60.0


class Board:
    """One events file. After a write that fails `error` says why, and nothing more is written: a torn record ends what
    TensorBoard reads of a file."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        """first_step: steps already done; what older files say of later ones is hidden."""
        folder.mkdir(parents=True, exist_ok=True)
        self.error: OSError | None = None
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._flushed = 0.0
        self._add(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, value: float, step: int) -> None:
        self._add(step, summary=summary.scalar(name, value))

    def image(self, name: str, pixels, step: int) -> None:
        """pixels: uint8 (H, W, 3)."""
        self._add(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def _add(self, step: int, **what) -> None:
        if self.error is not None:
            return
        try:
            self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self.error = error

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            self.error = error
