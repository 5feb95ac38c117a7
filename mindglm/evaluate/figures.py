"""Pictures for the page: curves with matplotlib, sheets of sample pictures with Pillow."""

import json
import pathlib
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mindglm.errors import UserError

COLOURS = ("#1f5fa8", "#c8553d", "#3a7d44", "#7a5195")
INK = (38, 38, 38)


def read_metrics(run_dir) -> tuple[list[dict], list[dict]]:
    """(training lines, validation lines) of a run's metrics.jsonl.

    A resumed run may have written some steps twice: the later line counts. Raises UserError when there is nothing.
    """
    path = pathlib.Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"run {run_dir}: no metrics.jsonl in it; give the output_dir of a training run.")
    train, validation = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a killed run may be cut
            continue
        if "validation_loss" in row:
            validation[row["step"]] = row
        elif row.get("loss") is not None:
            train[row["step"]] = row
    if not train:
        raise UserError(f"run {run_dir}: metrics.jsonl holds no training step.")
    return [train[s] for s in sorted(train)], [validation[s] for s in sorted(validation)]


def smooth(values, span: int) -> np.ndarray:
    """Mean over a centred window of `span` values, narrower at both ends."""
    values = np.asarray(values, np.float64)
    sums, half = np.concatenate([[0], np.cumsum(values)]), span // 2
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def loss_curves(runs: dict[str, object], path) -> None:
    """One panel a run: training loss (each step and smoothed) and validation loss."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(runs), figsize=(5.2 * len(runs), 3.4), squeeze=False)
    for axis, (name, run_dir) in zip(axes[0], runs.items()):
        train, validation = read_metrics(run_dir)
        steps, losses = [r["step"] for r in train], [r["loss"] for r in train]
        axis.plot(steps, losses, color=COLOURS[0], alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(losses, max(1, len(losses) // 40)), color=COLOURS[0], label="training (smoothed)")
        if validation:
            axis.plot([r["step"] for r in validation], [r["validation_loss"] for r in validation], "o-", markersize=3,
                      color=COLOURS[1], label="validation")
        if min(losses) > 0 and max(losses) / min(losses) > 20:
            axis.set_yscale("log")
        _finish(axis, name, "step", "loss")
    _save(figure, path)


def curves_by_timestep(by_timestep: dict[str, list[float]], timesteps, titles: dict[str, str], path) -> None:
    """Flow loss over noise level, one line a condition."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    for (name, values), colour in zip(by_timestep.items(), COLOURS):
        axis.plot(timesteps, values, "o-", markersize=3, color=colour, label=titles.get(name, name))
    _finish(axis, "Flow loss by time step (1000: pure noise)", "time step", "loss")
    _save(figure, path)


def _finish(axis, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


def _save(figure, path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the page needs matplotlib: pip install 'mindglm[quickstart]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def sheet(rows, titles, labels=None, scale: int = 1, label_width: int = 190) -> Image.Image:
    """Pictures in rows under column titles, a text label left of each row.

    rows: lists of uint8 (H, W, 3), all of one size. titles: one a column. labels: one a row, or None.
    scale: enlarge every picture by this whole factor (nearest pixel).
    """
    height, width = (x * scale for x in rows[0][0].shape[:2])
    gap, top, left = 6, 22, label_width if labels else 6
    size = (left + len(rows[0]) * (width + gap), top + len(rows) * (height + gap))
    out = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(out), _font()
    for column, title in enumerate(titles):
        draw.text((left + column * (width + gap) + width / 2, 4), title, fill=INK, font=font, anchor="ma")
    for r, pictures in enumerate(rows):
        y = top + r * (height + gap)
        if labels:
            lines = textwrap.wrap(labels[r], (label_width - 12) // 6)
            draw.multiline_text((6, y + 4), "\n".join(lines), fill=INK, font=font)
        for column, pixels in enumerate(pictures):
            picture = Image.fromarray(pixels)
            if scale > 1:
                picture = picture.resize((width, height), Image.Resampling.NEAREST)
            out.paste(picture, (left + column * (width + gap), y))
    return out


def captioned_grid(pictures, captions, columns: int, scale: int = 1) -> Image.Image:
    """Pictures with their captions below them."""
    height, width = (x * scale for x in pictures[0].shape[:2])
    gap, font = 10, _font()
    wrapped = ["\n".join(textwrap.wrap(c, max(10, width // 6))[:3]) for c in captions]
    row_height = height + 3 * 14 + gap
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (gap + columns * (width + gap), gap + rows * row_height), "white")
    draw = ImageDraw.Draw(out)
    for i, (pixels, text) in enumerate(zip(pictures, wrapped)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * row_height
        out.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (x, y))
        draw.multiline_text((x, y + height + 3), text, fill=INK, font=font, spacing=2)
    return out


def _font():
    """DejaVu Sans as matplotlib ships it: it has the letters that captions need."""
    try:
        import matplotlib
    except ImportError:
        return ImageFont.load_default(11)
    return ImageFont.truetype(str(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 11)
