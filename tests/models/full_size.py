"""Builds the released sizes from the shipped recipes and released configs, and prints what that took (CPU seconds).

Run by test_full_size.py in a process of its own, so that time and memory are those of a fresh start:
    python -m tests.models.full_size
"""

import json
import math
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    import mindspore  # noqa: F401  (a fresh start needs it; its import is not counted as building)

    from mindglm import ops, recipe  # noqa: F401
    from mindglm.checkpoint.components import COMPONENTS, RELEASED
    from mindglm.checkpoint.released import component_config
    from mindglm.models.ar_generator.model import ArGenerator
    from mindglm.models.ar_generator.vision import VisionTokenizer
    from mindglm.models.dit_decoder.model import DiTDecoder
    from mindglm.models.glyph_encoder.model import GlyphEncoder
    from mindglm.models.vae.model import VAE

    start = time.process_time()
    structures = {path.stem: recipe.load(path).model.model_config
                  for path in sorted((ROOT / "recipes" / "glm_image").glob("*.yaml"))}
    ar, dit = structures["ar_9b_pretrain_256"], structures["dit_7b_pretrain_256"]
    configs = {name: kind.config.from_hf(component_config(RELEASED, name)) for name, kind in COMPONENTS.items()}
    assert (configs["vision_language_encoder"], configs["transformer"]) == (ar, dit)
    built = {"vision_language_encoder": (ArGenerator(ar), VisionTokenizer(ar)), "transformer": (DiTDecoder(dit),),
             "vae": (VAE(configs["vae"]),), "text_encoder": (GlyphEncoder(configs["text_encoder"]),)}
    found = {}
    for name, cells in built.items():
        kind = COMPONENTS[name]
        cell_shapes = {p.name: tuple(p.shape) for cell in cells for p in cell.get_parameters()}
        assert cell_shapes == kind.names.tensors(configs[name]), name
        found[name] = {"tensors": len(cell_shapes), "dtype": kind.dtype,
                       "parameters": sum(math.prod(shape) for shape in cell_shapes.values())}
    print(json.dumps({"components": found, "seconds": time.process_time() - start,
                      "bytes": peak_memory()}))


def peak_memory() -> int:
    """Largest resident size so far, in bytes. ru_maxrss would be at least that of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
