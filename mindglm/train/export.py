"""The end of a run: `<output_dir>/model/`, a folder in the released layout.

It holds pretrained_model_dir's components as they are, and the trained component: its trained tensors over those that
the pretrained component has besides (an AR run does not touch the vision tower, but the component needs it).
"""

import os
import pathlib
import shutil

import numpy as np

from mindglm.checkpoint import released, start
from mindglm.checkpoint.scan import walk
from mindglm.errors import UserError
from mindglm.train.objectives import component_modules

MEASURED_SAMPLES = 256
"""Training samples that an objective may look at to finish its config (the VAE's latent statistics)."""


def write(recipe, objective, dataset, trained: dict[str, np.ndarray]) -> pathlib.Path:
    """Export; returns the folder, which appears whole or not at all.

    trained: {released name: array}, the objective's component_tensors of all stages. UserError when the disk refuses.
    """
    target = pathlib.Path(recipe.output_dir) / "model"
    released.remove_leftovers(target)  # whatever process left them: this run alone holds the folder (train/lock.py)
    try:
        _write(recipe, objective, dataset, trained, target)
    except OSError as error:
        released.remove_leftovers(target)
        raise UserError(f"{target} could not be written ({error}). The checkpoints are whole: make room and start the "
                        "same command again") from error
    return target


def _write(recipe, objective, dataset, trained: dict[str, np.ndarray], target: pathlib.Path) -> None:
    hf_names, config_module = component_modules(recipe.model_type)
    component, source = hf_names.COMPONENT, start.base(recipe.pretrained_model_dir)
    config = recipe.model.model_config
    if hasattr(objective, "finish"):
        count = min(MEASURED_SAMPLES, len(dataset))
        config = objective.finish(dataset[i] for i in range(count))
    staging = target.with_name(f".model.{os.getpid()}.tmp")
    staging.mkdir(parents=True)
    tensors, extra = {}, {}
    if source is not None:
        _copy_rest(pathlib.Path(source), staging, component)
        if released.has_component(source, component):
            extra = _side_files(pathlib.Path(source) / component)
    if recipe.pretrained_model_dir is not None:
        before = start.component(recipe.pretrained_model_dir, component)
        tensors.update({name: before.read(name) for name in before.header
                        if name not in hf_names.ALIASES and name not in trained})
    tensors.update(trained)
    order = [name for name in hf_names.tensors(config) if name in tensors]
    assert len(order) == len(tensors), f"not in the component: {sorted(set(tensors) - set(order))[:3]}"
    released.write_component(staging, component, config_module.to_hf(config),
                             {name: np.asarray(tensors[name]) for name in order}, hf_names.DTYPE, extra_files=extra)
    released.replace_folder(staging, target)


def _copy_rest(source: pathlib.Path, target: pathlib.Path, component: str) -> None:
    """Everything of the source folder but the trained component, hidden entries and a seal, which would not fit it."""
    for path in walk(source):  # it refuses links that lead out of the folder
        top = path.split("/")[0]
        if top != component and not top.startswith("."):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, target / path)


def _side_files(folder: pathlib.Path) -> dict[str, bytes]:
    """Files of a component besides weights and config: generation_config.json and the like."""
    return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir())
            if entry.is_file() and entry.name != "config.json" and ".safetensors" not in entry.name}
