"""What `mindglm generate` does: refuse what cannot work, then load, draw, and write one PNG."""

import math
import os
import pathlib
import tempfile

from mindglm.errors import UserError
from mindglm.generate.loading import check_model_folder


def cli_run(model, prompts, height, width, steps, guidance_scale, seed, num_images, output):
    """Draws `num_images` pictures for each of `prompts` into one PNG; several pictures make a grid, a row a prompt.

    height, width: pixels, or None for the size the model was made for (`sample_size` of vae/config.json).
    Raises UserError before any weight is read when an argument cannot work.
    """
    height, width, output = check_arguments(model, prompts, height, width, steps, guidance_scale, seed, num_images,
                                            output)
    from mindglm import ops
    from mindglm.generate.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model, compiled=ops.DEVICE == "cpu")
    images = pipeline(prompts, height, width, steps=steps, guidance_scale=guidance_scale, seed=seed,
                      num_images=num_images, progress=True)
    write_png(picture_grid(images, columns_for(len(images), num_images)), output)
    print(f"wrote {output} ({len(images)} {'picture' if len(images) == 1 else 'pictures'})")


def check_arguments(model, prompts, height, width, steps, guidance_scale, seed, num_images, output):
    """Every refusal of `mindglm generate`; returns (height, width, output path), the path's folder made."""
    if not prompts:
        raise UserError("no prompt given; expected at least one --prompt TEXT.")
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise UserError(f"prompt {index + 1} is empty; expected a description of the picture.")
    for name, value in (("--steps", steps), ("--num-images", num_images)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected 1 or more.")
    if seed < 0:
        raise UserError(f"--seed is {seed}; expected 0 or more.")
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UserError(f"--guidance-scale is {guidance_scale}; expected a number from 0 (1 or less: no guidance; "
                        "the released pipeline uses 1.5).")
    root = check_model_folder(model)
    from mindglm.checkpoint.released import component_config, read_json
    from mindglm.models.ar_generator.processor import check_size

    native = component_config(root, "vae").get("sample_size", 1024)
    height, width = native if height is None else height, native if width is None else width
    check_size(height, width)
    trained = read_json(root / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000)
    if steps > trained:
        raise UserError(f"--steps is {steps}; expected at most {trained}, the time steps this model was trained on.")
    return height, width, check_output(output)


def check_output(output) -> pathlib.Path:
    """The path to write, proved writable now, so that no minute of drawing is lost to a wrong path."""
    path = pathlib.Path(output)
    if path.suffix.lower() != ".png":
        raise UserError(f"--output is {path}; expected a file name that ends in .png.")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; expected a file name, for example {path / 'picture.png'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "the file exists and is write-protected")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}. Choose another path or free "
                        "this one.") from error
    return path


def columns_for(count: int, num_images: int) -> int:
    """Columns of the grid: a row a prompt when each has several pictures, else nearly square."""
    return num_images if num_images > 1 else math.ceil(math.sqrt(count))


def picture_grid(images, columns: int, gap: int = 2):
    """PIL pictures of one size side by side on white; a single picture is returned as it is."""
    from PIL import Image

    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return grid


def write_png(image, path: pathlib.Path) -> None:
    """Write and rename, so that an interrupted call never leaves half a picture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(temporary, "PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
