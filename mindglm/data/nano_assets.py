"""Puts the nano model's frozen components together as one released-layout folder: `mindglm/assets/nano`.

    python -m mindglm.data.nano_assets --trained output/nano/glyph/model --captions FILE --output mindglm/assets/nano

`--trained` is the folder that the runs of recipes/nano/{vae,tokenizer,glyph}.yaml leave, one building on the other;
launch/make_nano_assets.sh runs them and this. Beside the folder, `nano.json` says which recipes it was made by.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

from mindglm.checkpoint import released
from mindglm.data import tokenizer_training
from mindglm.data.drawing import write_json
from mindglm.errors import UserError, exit_code
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.dit_decoder.config import scheduler_to_hf
from mindglm.recipe.models import SchedulerConfig

COMPONENTS = ("vae", "vision_language_encoder", "text_encoder")
RECIPES = ("vae", "tokenizer", "glyph")
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 1.0}
"""The release has 0.9 and 0.75 (reference section 2.2). A generator of a few minutes' training is seldom sure where an
object begins; cut to its likeliest codes it would write nothing but ground."""
SCHEDULER = SchedulerConfig(base_image_seq_len=4)
"""The released shift but for its base length: 128 px then get the noise that the release gives 1024 px (mu 3.25)."""
MODEL_INDEX = {
    "_class_name": "GlmImagePipeline",
    "_diffusers_version": "0.37.0.dev0",
    "text_encoder": ["transformers", "T5EncoderModel"],
    "vision_language_encoder": ["transformers", "GlmImageForConditionalGeneration"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "tokenizer": ["transformers", "ByT5Tokenizer"],
    "processor": ["transformers", "GlmImageProcessor"],
    "transformer": ["diffusers", "GlmImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def recipe_hashes(recipes: Path) -> dict[str, str]:
    """SHA-256 of each recipe file that the assets are made by."""
    return {f"{name}.yaml": hashlib.sha256((recipes / f"{name}.yaml").read_bytes()).hexdigest() for name in RECIPES}


def run(trained: Path, captions: Path, recipes: Path, output: Path) -> int:
    """Write the folder and `<output>.json`; returns the folder's size in bytes. UserError when a component lacks."""
    lacking = [name for name in COMPONENTS if not released.has_component(trained, name)]
    if lacking:
        raise UserError(f"{trained}: no {', '.join(lacking)}; expected the model folder of a finished run of "
                        "recipes/nano/glyph.yaml, which builds on tokenizer.yaml and vae.yaml")
    config = ar_config.from_hf(released.component_config(trained, "vision_language_encoder"))
    staging = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    for name in COMPONENTS:  # all in bfloat16, the glyph encoder too: the folder is shipped, 4 MB at most
        released.write_component(staging, name, released.component_config(trained, name),
                                 released.read_component_raw(trained, name), "bfloat16")
    tokenizer_training.run(captions, staging, config.num_codes, config.text_config.vision_vocab_size,
                           config.text_config.vocab_size)
    write_json(staging / "vision_language_encoder" / "generation_config.json", {
        **SAMPLING, "eos_token_id": config.image_end_token_id, "pad_token_id": config.image_token_id})
    (staging / "scheduler").mkdir()
    write_json(staging / "scheduler" / "scheduler_config.json", scheduler_to_hf(SCHEDULER))
    write_json(staging / "model_index.json", MODEL_INDEX)
    released.replace_folder(staging, output)
    write_json(output.with_suffix(".json"), {"made_by": recipe_hashes(recipes)})
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mindglm.data.nano_assets", description=__doc__.split("\n")[0])
    parser.add_argument("--trained", type=Path, required=True, help="model folder of the glyph run")
    parser.add_argument("--captions", type=Path, required=True, help="captions.jsonl the text tokenizer learns from")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/nano"), help="folder of the nano recipes")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)

    def command():
        size = run(args.trained, args.captions, args.recipes, args.output)
        print(f"{args.output}: {size / 1e6:.2f} MB")

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
