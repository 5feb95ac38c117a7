"""What `pretrained_model_dir` names: a folder in the released layout, or a training run or checkpoint to go on from.

Of a run, the newest checkpoint counts (one of its iteration folders names another): its weights, averaged where it has
an average, stand in for those of the component it trains; everything else comes from where that run itself began. Its
optimizer state and counters are not read: that is what resuming is for.
"""

import os
import pathlib
from dataclasses import dataclass

import numpy as np

from mindglm.checkpoint import released, training
from mindglm.checkpoint.components import OF_STRUCTURE
from mindglm.checkpoint.stored import Checkpoint, Tensors
from mindglm.checkpoint.tensors import TensorFile
from mindglm.errors import UserError


@dataclass(frozen=True)
class Component:
    """The tensors that a run finds of one component."""

    header: dict[str, tuple[str, tuple[int, ...]]]
    """{tensor: (dtype code, shape)}; empty when there is no such component."""
    _trained: dict[str, Tensors]
    _files: dict[str, TensorFile]

    def read(self, name: str) -> np.ndarray:
        """A tensor in its stored dtype, bfloat16 as uint16. Damage is a UserError."""
        return self._trained[name].array(name) if name in self._trained else self._files[name].raw(name)


def base(model_dir: str | os.PathLike | None) -> str | None:
    """The folder in the released layout in the end: `model_dir` itself, or where its run began. None: there is none."""
    passed = []
    while model_dir is not None and (folder := training.find(model_dir)) is not None:
        if folder in passed:
            raise UserError(f"pretrained_model_dir: {folder} is a checkpoint of a run that began from itself; give the "
                            "model folder that a run exported")
        passed.append(folder)
        model_dir = training.read_recipe(Checkpoint(folder)).pretrained_model_dir
    return None if model_dir is None else str(model_dir)


def component(model_dir: str | os.PathLike, name: str) -> Component:
    """The component in folder `name`, from wherever `model_dir` leads."""
    trained: dict[str, Tensors] = {}
    folder = training.find(model_dir)
    at = base(model_dir)
    while folder is not None:
        checkpoint = Checkpoint(folder)
        recipe = training.read_recipe(checkpoint)
        if OF_STRUCTURE[type(recipe.model.model_config)] == name:
            trained = {**training.weights_of(checkpoint), **trained}
        folder = None if recipe.pretrained_model_dir is None else training.find(recipe.pretrained_model_dir)
    files = released.open_component(at, name) if at is not None and released.has_component(at, name) else {}
    sources = {**files, **trained}
    return Component({tensor: (source.dtype(tensor), source.shape(tensor)) for tensor, source in sources.items()},
                     trained, files)


def holds_any(model_dir: str | os.PathLike) -> bool:
    """Whether there are weights of any component."""
    return training.find(model_dir) is not None or any(
        released.has_component(model_dir, name) for name in released.WEIGHT_STEM)


def place(model_dir: str | os.PathLike, name: str) -> pathlib.Path:
    """What to call the component in a message."""
    return training.find(model_dir) or pathlib.Path(model_dir) / name
