"""What `mindglm generate` does: refuse what cannot work, then load, draw, and write one PNG."""

import math
import os
import pathlib
import tempfile
from dataclasses import dataclass

import numpy as np

from mindglm.errors import UserError
from mindglm.generate import codes_file
from mindglm.generate.loading import check_model_folder


@dataclass(frozen=True)
class Request:
    """A call that was checked: everything that can be known without reading a weight."""

    prompts: list[str]
    height: int
    width: int
    images: list
    """Source images (PIL, RGB) that serve every prompt; empty for text to image."""
    prior_codes: np.ndarray | None
    """int32 (pictures, h32, w32), given instead of drawn."""
    output: pathlib.Path
    codes_output: pathlib.Path | None


def cli_run(model, prompts, height, width, steps, guidance_scale, seed, num_images, output, images=(),
            prompt_file=None, prior_codes=None, save_prior_codes=None):
    """Draws `num_images` pictures for each of `prompts` into one PNG; several pictures make a grid, a row a prompt.

    height, width: pixels, or None for the size the model was made for (`sample_size` of vae/config.json).
    images: files of source images, which serve every prompt. prompt_file: more prompts, one a line.
    prior_codes: file of codes to decode instead of drawing them; save_prior_codes: where drawn codes are written.
    Raises UserError before any weight is read when an argument cannot work.
    """
    request = check_arguments(model, prompts, height, width, steps, guidance_scale, seed, num_images, output, images,
                              prompt_file, prior_codes, save_prior_codes)
    from mindglm import ops
    from mindglm.generate.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model, compiled=ops.DEVICE == "cpu", with_images=bool(request.images))

    def save(codes):
        if request.codes_output is not None:
            owners = [prompt for prompt in request.prompts for _ in range(num_images)]
            codes_file.write(request.codes_output, codes, owners, pipeline.ar.config.num_codes)
            print(f"wrote {request.codes_output} (the codes of {len(codes)})")

    pictures = pipeline(request.prompts, request.height, request.width, steps=steps, guidance_scale=guidance_scale,
                        seed=seed, num_images=num_images, prior_codes=request.prior_codes, progress=True,
                        images=request.images, on_codes=save)
    write_png(picture_grid(pictures, columns_for(len(pictures), num_images)), request.output)
    print(f"wrote {request.output} ({len(pictures)} {'picture' if len(pictures) == 1 else 'pictures'})")


def check_arguments(model, prompts, height, width, steps, guidance_scale, seed, num_images, output, images=(),
                    prompt_file=None, prior_codes=None, save_prior_codes=None) -> Request:
    """Every refusal of `mindglm generate`; the folders of the files to write are made."""
    prompts = check_prompts(prompts, prompt_file)
    check_numbers(steps, guidance_scale, seed, num_images)
    if prior_codes is not None and save_prior_codes is not None:
        raise UserError("--prior-codes and --save-prior-codes are both given; codes that are given are not drawn. "
                        "Leave one out.")
    root = check_model_folder(model, with_images=bool(images))
    from mindglm.checkpoint.released import component_config, read_json
    from mindglm.models.ar_generator.config import from_hf
    from mindglm.models.ar_generator.processor import Processor

    trained = read_json(root / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000)
    if steps > trained:
        raise UserError(f"--steps is {steps}; expected at most {trained}, the time steps this model was trained on.")
    codes = None
    if prior_codes is not None:
        num_codes = from_hf(component_config(root, "vision_language_encoder")).num_codes
        codes = codes_file.read(pathlib.Path(prior_codes), num_codes)
    native = [component_config(root, "vae").get("sample_size", 1024)] * 2
    if codes is not None:
        native = codes_file.picture_size(codes)
    height, width = native[0] if height is None else height, native[1] if width is None else width
    processor = Processor.from_pretrained(root)
    processor.check_size(height, width)
    for prompt in prompts:
        processor.check_text(prompt)
    if codes is not None:
        codes = codes_file.fit(codes, len(prompts) * num_images, len(prompts), height, width, prior_codes)
    sources = [load_source(path, processor) for path in images]
    output = check_output(output, "--output", ".png")
    if save_prior_codes is not None:
        save_prior_codes = check_output(save_prior_codes, "--save-prior-codes", ".json")
    return Request(prompts, height, width, sources, codes, output, save_prior_codes)


def check_prompts(prompts, prompt_file=None) -> list[str]:
    """The prompts of the command line, then those of the file; its empty lines are passed over."""
    prompts = list(prompts or ())
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise UserError(f"prompt {index + 1} is empty; expected a description of the picture.")
    if prompt_file is not None:
        try:
            text = pathlib.Path(prompt_file).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"--prompt-file {prompt_file} cannot be read: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--prompt-file {prompt_file} is not UTF-8 text ({error.reason} at byte {error.start}); "
                            "expected one prompt a line, saved as UTF-8.") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise UserError(f"--prompt-file {prompt_file} holds no prompt; expected one a line.")
        prompts = prompts + lines
    if not prompts:
        raise UserError("no prompt given; expected at least one --prompt TEXT, or --prompt-file FILE.")
    return prompts


def check_numbers(steps, guidance_scale, seed, num_images) -> None:
    for name, value in (("--steps", steps), ("--num-images", num_images)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected 1 or more.")
    if seed < 0:
        raise UserError(f"--seed is {seed}; expected 0 or more.")
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UserError(f"--guidance-scale is {guidance_scale}; expected a number from 0 (1 or less: no guidance; "
                        "the released pipeline uses 1.5).")


def load_source(path, processor):
    """A source image as PIL RGB. UserError when it cannot be read, or when its size cannot work for this model."""
    from mindglm.data.readers import RefusedImage, load_image

    try:
        image, notes = load_image(pathlib.Path(path).read_bytes())
        processor.check_source(image)
    except OSError as error:
        raise UserError(f"--image {path} cannot be read: {error.strerror or error}.") from error
    except RefusedImage as error:
        raise UserError(f"--image {path}: {error}. Expected a picture file, for example PNG or JPEG.") from error
    except UserError as error:
        raise UserError(f"--image {path}: {error}.") from error
    for note in notes:
        print(f"--image {path}: {note}")
    return image


def check_output(output, option: str, suffix: str) -> pathlib.Path:
    """The path to write, proved writable now, so that no minute of drawing is lost to a wrong path."""
    path = pathlib.Path(output)
    if path.suffix.lower() != suffix:
        raise UserError(f"{option} is {path}; expected a file name that ends in {suffix}.")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; expected a file name, for example {path / ('a' + suffix)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "the file exists and is write-protected")
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror or error}. Choose another path or free "
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
