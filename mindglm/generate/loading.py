"""A model folder in the released layout: the check before anything heavy, and weights into Cells."""

import pathlib

from mindglm.checkpoint.released import component_header, has_component, read_component_raw, read_json
from mindglm.checkpoint.tensors import to_float32
from mindglm.errors import UserError

COMPONENTS = ("vision_language_encoder", "transformer", "vae", "text_encoder")
"""Folders with weights that a text-to-image run needs."""

_CONFIGS = {"scheduler": "scheduler_config.json", "processor": "tokenizer.json"}


def check_model_folder(model_dir, components=COMPONENTS, with_images: bool = False) -> pathlib.Path:
    """Raises UserError unless `model_dir` is a GLM-Image folder with all of `components`; reads only small files.

    with_images: the image tokenizer must be there too.
    """
    root = pathlib.Path(model_dir)
    if not root.is_dir():
        raise UserError(f"model folder {root}: no such folder. Give the folder that holds model_index.json, for "
                        "example the model/ folder of a finished DiT run.")
    if not (root / "model_index.json").is_file():
        raise UserError(f"model folder {root}: no model_index.json in it; expected a folder in the released GLM-Image "
                        "layout (model_index.json, vision_language_encoder/, transformer/, vae/, ...).")
    kind = read_json(root / "model_index.json").get("_class_name")
    if kind != "GlmImagePipeline":
        raise UserError(f"model folder {root}: its model_index.json says {kind!r}, expected 'GlmImagePipeline'. "
                        "This is another model; mindglm runs GLM-Image folders only.")
    lacking = [c for c in components if not (has_component(root, c) and (root / c / "config.json").is_file())]
    lacking += [f"{folder}/{file}" for folder, file in _CONFIGS.items() if not (root / folder / file).is_file()]
    if lacking:
        raise UserError(f"model folder {root}: {', '.join(lacking)} missing. A folder is complete once the VAE, the "
                        "tokenizer, the AR generator and the DiT are all in it: train what is missing, with "
                        "pretrained_model_dir set to this folder.")
    for component in components:
        if component == "vision_language_encoder":
            _check_has_decoder(root)
            if with_images and "model.visual.patch_embed.proj.weight" not in component_header(root, component):
                raise UserError(f"model folder {root}: vision_language_encoder holds no image tokenizer (no "
                                "model.visual.* tensors), which source images need. Generate without images, or put "
                                "the tokenizer into the component.")
    return root


def _check_has_decoder(root: pathlib.Path) -> None:
    """A tokenizer run leaves tower and VQ in the same component as the AR generator: say so before building it."""
    if "lm_head.weight" not in component_header(root, "vision_language_encoder"):
        raise UserError(f"model folder {root}: vision_language_encoder holds no AR generator (no lm_head.weight), only "
                        "the image tokenizer. Train the AR generator first (mindglm train .../ar.yaml).")


def load_component(cell, model_dir, component: str):
    """Sets every Parameter of `cell` (named as in the checkpoint) from the component's files; returns the cell.

    Raises UserError when a tensor is missing or has another shape than the component's config.json implies.
    """
    from mindspore import Tensor

    parameters = {p.name: p for p in cell.get_parameters()}
    header = component_header(model_dir, component)
    wrong = [f"{name} is {header[name][1]}, expected {tuple(p.shape)}" for name, p in parameters.items()
             if name in header and header[name][1] != tuple(p.shape)]
    if wrong:
        raise UserError(f"{pathlib.Path(model_dir) / component}: {len(wrong)} tensors have another shape than its "
                        f"config.json implies: {'; '.join(wrong[:3])}. Weights and config.json belong to different "
                        "models.")
    for name, raw in read_component_raw(model_dir, component, parameters).items():
        parameters[name].set_data(Tensor(to_float32(raw)))
    return cell
