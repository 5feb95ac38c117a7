"""Opens whatever holds tensors, for looking at it: model folders, training checkpoints, single files, and structures
without weights (a recipe, a config.json, a folder of configs)."""

import os
import pathlib
import re
from dataclasses import dataclass, field

import numpy as np

from mindglm.checkpoint import conversion, seal, training
from mindglm.checkpoint.components import COMPONENTS, OF_STRUCTURE
from mindglm.checkpoint.released import read_json
from mindglm.checkpoint.scan import component_of, scan, walk
from mindglm.checkpoint.header import item_bytes
from mindglm.checkpoint.stored import Checkpoint, Tensors
from mindglm.checkpoint.tensors import TensorFile
from mindglm.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A tensor: what it is and, if it has values, where."""

    code: str
    shape: tuple[int, ...]
    file: TensorFile | Tensors | None = None
    crc32: int | None = None
    """As remembered by the folder it is in, if it remembers one for the whole tensor."""

    @property
    def is_checked(self) -> bool:
        """Whether damage to its values would be seen."""
        return self.crc32 is not None or isinstance(self.file, Tensors)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * item_bytes(self.code)


@dataclass(frozen=True)
class Place:
    """What is at a path."""

    path: pathlib.Path
    kind: str
    """released | mindglm | training | file | structure"""
    groups: dict[str, dict[str, Entry]]
    """{component or kind of tensor: {name: entry}}, names in natural order."""
    others: list[str] = field(default_factory=list)
    """Relative paths of further files of a model folder."""


def open_place(path: str | os.PathLike, step: int | None = None) -> Place:
    """What is at `path`. Raises UserError when it holds no tensors and describes none."""
    path = pathlib.Path(path)
    if path.is_file():
        if path.suffix == ".safetensors":
            return Place(path, "file", {path.name: _natural(_of_file(TensorFile(path)))})
        return Place(path, "structure", _structure(path))
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    folder = training.find(path, step)
    if folder is not None:
        return _training(folder)
    if not any(name.endswith(".safetensors") for name in walk(path)):
        configs = [file for name in COMPONENTS if (file := path / name / "config.json").is_file()]
        if configs:
            return Place(path, "structure", {k: v for file in configs for k, v in _structure(file).items()})
    return _model_folder(path)


def as_component(place: Place, weights: str) -> Place:
    """A training checkpoint seen as the component it trains, to compare it with a model folder; others as they are."""
    if place.kind != "training":
        return place
    recipe = training.read_recipe(Checkpoint(place.path))
    average = place.groups.get("ema", {}) if weights != "live" else {}
    found = {name: entry for name, entry in {**place.groups["model"], **average}.items()
             if not name.startswith(training.TRAINING_ONLY)}
    return Place(place.path, "component", {OF_STRUCTURE[type(recipe.model.model_config)]: _natural(found)})


def _of_file(file: TensorFile, remembered: dict | None = None) -> dict[str, Entry]:
    return {name: Entry(file.dtype(name), file.shape(name), file, (remembered or {}).get(name, {}).get("crc32"))
            for name in file.names}


def _natural(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Layer 2 before layer 10."""
    def key(name: str) -> list:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[./]", name)]

    return {name: entries[name] for name in sorted(entries, key=key)}


def _structure(path: pathlib.Path) -> dict[str, dict[str, Entry]]:
    """The tensors that a recipe or a config.json describes, as the release would store them."""
    if path.suffix in (".yaml", ".yml"):
        try:
            from mindglm import recipe

            config = recipe.load(path).model.model_config
        except ModuleNotFoundError as error:
            if error.name != "yaml":
                raise
            raise UserError(f"{path}: to read a recipe, pip install pyyaml") from error
        name = OF_STRUCTURE[type(config)]
        pairs = COMPONENTS[name].names.name_map(config)
    else:
        content = read_json(path) if path.suffix == ".json" else {}
        name = component_of(content)
        if name is None:
            raise UserError(f"{path}: expected a safetensors file, a recipe, or the config.json of one of "
                            f"{', '.join(COMPONENTS)}")
        pairs = COMPONENTS[name].name_map(content)
    code = conversion.CODES[COMPONENTS[name].dtype]
    return {name: {pair.theirs: Entry(code, pair.their_shape) for pair in pairs}}


def _training(folder: pathlib.Path) -> Place:
    groups = {kind: _natural({name: Entry(stored.dtype(name), stored.shape(name), stored) for name in stored.names})
              for kind, stored in Checkpoint(folder).kinds.items()}
    return Place(folder, "training", groups)


def _model_folder(path: pathlib.Path) -> Place:
    folder = scan(path)
    sealed = seal.read(path) if seal.is_sealed(path) else {}
    groups = {}
    for component in folder.components:
        entries = {}
        for name, file in component.files.items():
            entries.update(_of_file(file, sealed.get(folder.relative(component, name), {}).get("tensors")))
        label = component.path or next(n for n, kind in COMPONENTS.items() if kind is component.kind)
        groups[label] = _natural(entries)
    indices = [folder.relative(c, c.index) for c in folder.components if c.index is not None]
    return Place(path, "mindglm" if sealed else "released", groups, sorted([*folder.others, *indices]))
