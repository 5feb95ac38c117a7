"""What a run tells while it runs: metrics.jsonl, TensorBoard, a progress bar, and the log lines mindformers users grep.

Only rank 0 writes. A resumed run first drops the lines of steps that its checkpoint does not have, so that the ledger
reads as if the run had never stopped.
"""

import json
import logging
import math
import pathlib
import sys

from tqdm import tqdm

from mindglm.checkpoint.tensors import write_text


class Metrics:
    """The writers of one run; on other ranks than 0 every method does nothing."""

    def __init__(self, output_dir: pathlib.Path, recipe, first_step: int, writes: bool):
        """first_step: optimizer steps already done."""
        self._writes, self._stop = writes, recipe.runner_config.stop_step
        self._interval = recipe.monitor_config.log_interval
        if not writes:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        self._file = _reopen(output_dir / "metrics.jsonl", first_step)
        self._logger = _logger(output_dir / "log" / "train.log")
        self._board = None
        if recipe.monitor_config.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(total=self._stop, initial=first_step, unit="step", dynamic_ncols=True,
                         mininterval=0.5 if sys.stderr.isatty() else 10.0)

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
                self._board.add_scalar(f"train/{name}", line[name], step)
            self._board.add_scalar("train/seconds", seconds, step)

    def validation(self, step: int, loss: float) -> None:
        """The held-out loss after `step`."""
        if not self._writes:
            return
        self._write({"step": step, "validation_loss": loss})
        self.say(f"step {step}: validation loss {loss:.4f}")
        if self._board:
            self._board.add_scalar("validation/loss", loss, step)

    def picture(self, step: int, path: pathlib.Path, pixels) -> None:
        """A sample picture that was written to `path`; pixels: (H, W, 3) uint8."""
        if self._writes and self._board:
            self._board.add_image("samples", pixels, step, dataformats="HWC")

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(_plain(line)) + "\n")
        self._file.flush()

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


def _reopen(path: pathlib.Path, first_step: int):
    """The ledger opened for appending, without lines of later steps and without a line cut by a kill."""
    if path.exists():
        kept = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                step = json.loads(text)["step"]
            except ValueError:
                continue  # the last line of a killed run may be cut; its step is repeated
            if step <= first_step:
                kept.append(text + "\n")
        write_text(path, "".join(kept))
    return open(path, "a", encoding="utf-8")


def _logger(path: pathlib.Path) -> logging.Logger:
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(f"mindglm.train.{path}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s - mindglm - %(levelname)s - %(message)s"))
    logger.addHandler(handler)
    return logger
