"""What a run tells while it runs: metrics.jsonl, TensorBoard, a progress bar, and the log lines mindformers users grep.

Only rank 0 writes. A checkpoint remembers how many lines metrics.jsonl had (not bytes: seconds, which no two runs
share, are in them); a resumed run cuts the file there, so that it reads as if the run had never stopped. A full disk
stops none of this: lines wait in memory until they can be written.
"""

import json
import logging
import math
import os
import pathlib
import sys

from tqdm import tqdm

from mindglm.checkpoint.disk import write_text
from mindglm.ledger.chain import Appender
from mindglm.train import samples


class Metrics:
    """The writers of one run; on other ranks than 0 every method does nothing."""

    def __init__(self, output_dir: pathlib.Path, recipe, first_step: int, writes: bool, lines: int | None = None):
        """first_step: optimizer steps already done. lines: how many the file had then, if the checkpoint knows."""
        self._writes, self._stop = writes, recipe.runner_config.stop_step
        self.lines = 0
        """Lines of metrics.jsonl up to now, for the checkpoint; 0 where nothing is written."""
        self._interval = recipe.monitor_config.log_interval
        if not writes:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        self.lines, note = _cut(output_dir / "metrics.jsonl", first_step, lines)
        self._file = Appender(output_dir / "metrics.jsonl")
        self._logger = _logger(output_dir / "log" / "train.log")
        self._board = None
        if recipe.monitor_config.tensorboard:
            from mindglm.train.board import Board

            self._board = Board(output_dir / "tensorboard", first_step)
        self._bar = tqdm(total=self._stop, initial=first_step, unit="step", dynamic_ncols=True,
                         mininterval=0.5 if sys.stderr.isatty() else 10.0)
        if note:
            self.say(note)

    def say(self, text: str) -> None:
        """One line for people: to the log file and the screen."""
        if self._writes:
            self._logger.info(text)
            self._bar.write(f"mindglm: {text}", file=sys.stderr)

    def step(self, line: dict) -> None:
        """One optimizer step: step, loss, grad_norm, lr, samples, seconds {phase: s}, skipped, and extra numbers."""
        if not self._writes:
            return
        step, seconds = line["step"], sum(line["seconds"].values())
        self._bar.set_postfix(loss=f"{line['loss']:.4g}", lr=f"{line['lr']:.2e}", refresh=False)
        self._bar.update(1)
        if step % self._interval and step != self._stop:
            return
        self._write(line)
        overflow = not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]))
        self._logger.info("{ Epoch:[%3d/%3d], step:[%5d/%5d], loss: %5.3f, per_step_time: %dms, lr: %s, "
                          "overflow cond: %s, loss_scale: 1.0, global_norm: [%s] }", 1, 1, step, self._stop,
                          line["loss"], int(seconds * 1000), line["lr"], overflow, line["grad_norm"])
        if self._board:
            for name in ("loss", "grad_norm", "lr"):
                self._board.scalar(f"train/{name}", line[name], step)
            self._board.scalar("train/seconds", seconds, step)
            self._keep_board()

    def validation(self, step: int, loss: float) -> None:
        """The held-out loss after `step`."""
        if not self._writes:
            return
        self._write({"step": step, "validation_loss": loss})
        self.say(f"step {step}: validation loss {loss:.4f}")
        if self._board:
            self._board.scalar("validation/loss", loss, step)

    def picture(self, step: int, path: pathlib.Path, pixels) -> None:
        """A sample picture, uint8 (H, W, 3), as PNG to `path` and to TensorBoard."""
        if not self._writes:
            return
        try:
            samples.write(path, pixels)
        except OSError as error:
            self.say(f"{path} cannot be written ({error})")
        if self._board:
            self._board.image("samples", pixels, step)

    def _keep_board(self) -> None:
        """Go on without TensorBoard once its file could not be written."""
        if self._board.error is not None:
            self.say(f"TensorBoard's events end here, they cannot be written ({self._board.error})")
            self._board.close()
            self._board = None

    def _write(self, line: dict) -> None:
        failed = self._file.error is not None
        self._file.write(json.dumps(_plain(line)) + "\n")
        self.lines += 1
        if self._file.error is not None and not failed:
            self.say(f"metrics.jsonl cannot be written ({self._file.error}); its lines wait in memory")

    def close(self) -> None:
        """Flush everything."""
        if self._writes:
            self._bar.close()
            self._file.close()
            if self._board:
                self._board.close()
            for handler in list(self._logger.handlers):
                self._logger.removeHandler(handler)
                handler.close()


def _plain(value):
    """JSON has no NaN: numbers that are not finite become null; floats keep 8 significant digits."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def _cut(path: pathlib.Path, first_step: int, lines: int | None) -> tuple[int, str]:
    """Leave the lines of the steps done; (how many they are, what to say of it). lines: what the checkpoint says.

    Where that does not fit the file, or an older checkpoint does not say, lines are chosen by their step.
    """
    there = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines is not None and _ends_at(there, lines, first_step):
        if there[lines:]:
            os.truncate(path, sum(map(len, there[:lines])))
        return lines, ""
    kept = [line for line in there if (step := _step_of(line)) is not None and step <= first_step]
    if kept != there:
        write_text(path, b"".join(kept).decode())
    if lines is None:
        return len(kept), ""
    return len(kept), (f"{path} was changed: it does not have the {lines} lines that the checkpoint of step "
                       f"{first_step} counted; kept are its {len(kept)} lines of steps up to {first_step}")


def _ends_at(there: list[bytes], lines: int, first_step: int) -> bool:
    """Whether the lines of steps up to first_step are the first `lines` ones, judged by those at the cut."""
    last, following = there[lines - 1:lines] if lines else [], there[lines:lines + 1]
    return (len(there) >= lines and all((step := _step_of(line)) is not None and step <= first_step for line in last)
            and all((step := _step_of(line)) is None or step > first_step for line in following))


def _step_of(line: bytes) -> int | None:
    """The step of a line; None for one that was cut when the run was killed: its step is done again."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, LookupError, TypeError):
        return None


class _LogFile(logging.FileHandler):
    """What the disk does not take waits in the file's buffer and was on the screen: said once, without a traceback."""

    _told = False

    def handleError(self, record) -> None:
        if not self._told:
            print(f"mindglm: {self.baseFilename} cannot be written ({sys.exc_info()[1]})", file=sys.stderr, flush=True)
        self._told = True

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # it must not hide how the run ended
            self.handleError(None)


def _logger(path: pathlib.Path) -> logging.Logger:
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(f"mindglm.train.{path}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s - mindglm - %(levelname)s - %(message)s"))
    logger.addHandler(handler)
    return logger
