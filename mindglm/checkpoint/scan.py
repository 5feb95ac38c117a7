"""Looks at a model folder without reading its weights: components, weight files, everything else, and what is wrong."""

import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from mindglm.checkpoint import matching, seal
from mindglm.checkpoint.components import COMPONENTS, Component
from mindglm.checkpoint.disk import refuse_links_out
from mindglm.checkpoint.released import WEIGHT_STEM, open_weights, read_json, read_weight_map
from mindglm.checkpoint.tensors import TensorFile
from mindglm.errors import UserError
from mindglm.models.names import Pair

IGNORED = (".git", ".cache")
"""Folders that version control and download tools leave beside the model: never copied."""


@dataclass(frozen=True)
class ComponentFolder:
    """One component on disk."""

    path: str
    """Relative to the model folder; "" when the folder that was given is itself a component."""
    kind: Component
    config: dict
    files: dict[str, TensorFile]
    """{file name: open weight file}"""
    index: str | None
    """Name of the index json, when there is one."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the files themselves."""

    def header(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """{tensor name: (dtype code, shape)} of all files."""
        return {name: (file.dtype(name), file.shape(name)) for file in self.files.values() for name in file.names}

    def pairs(self) -> list[Pair]:
        """The name map for what is there: an alias beside its tensor is kept, one in its place is a second name."""
        header = self.header()
        pairs = {pair.theirs: pair for pair in self.kind.name_map(self.config)}
        for alias, name in self.kind.aliases.items():
            if alias in header and name in header:
                pairs[alias] = Pair(alias, alias, pairs[name].shape)
            elif alias in header:
                pairs[alias] = Pair(name, alias, pairs.pop(name).shape)
        return list(pairs.values())

    def faults(self, ours: bool = False) -> list[str]:
        """Everything that keeps the component from being used, a line for each kind. ours: read it by our names."""
        wanted = {p.ours: p.shape for p in self.pairs()} if ours else {p.theirs: p.their_shape for p in self.pairs()}
        return self.problems + matching.faults(wanted, self.header())


@dataclass(frozen=True)
class ModelFolder:
    """A folder in the released layout, or one component of it."""

    root: pathlib.Path
    components: list[ComponentFolder]
    others: list[str]
    """Relative paths of all files but weights and their index."""

    @property
    def total_bytes(self) -> int:
        """Of the weights."""
        return sum(file.nbytes(name) for c in self.components for file in c.files.values() for name in file.names)

    def relative(self, component: ComponentFolder, name: str) -> str:
        return f"{component.path}/{name}" if component.path else name

    def all_files(self) -> list[str]:
        """Relative paths of everything, weights and indices too."""
        weights = [self.relative(c, name) for c in self.components
                   for name in [*c.files, *([c.index] if c.index is not None else [])]]
        return [*self.others, *weights]

    def component(self, name: str) -> ComponentFolder | None:
        """The component in the folder of that name, if it is there."""
        return next((c for c in self.components if c.path == name), None)


def scan(root: str | os.PathLike) -> ModelFolder:
    """The model folder at `root`. Raises UserError when it is none or a file cannot be read at all."""
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a folder in the released GLM-Image layout")
    found = [_component(root, name, kind) for name, kind in COMPONENTS.items() if _has_weights(root / name)]
    if not found and _has_weights(root):
        name = component_of(read_json(root / "config.json"))
        if name is not None:
            found = [_component(root, "", COMPONENTS[name])]
    if not found:
        raise UserError(f"{root}: holds no component with weights; expected a folder in the released GLM-Image layout "
                        f"with some of {', '.join(COMPONENTS)}, or one of these itself")
    folder = ModelFolder(root, found, [])
    weights = {folder.relative(c, name) for c in found for name in [*c.files, *([c.index] if c.index else [])]}
    others = [path for path in walk(root) if path not in weights]
    return ModelFolder(root, found, others)


def walk(root: pathlib.Path) -> Iterator[str]:
    """Relative paths of the files of a model folder, ordered; the seal is left out.

    Links to files may stay within the folder, or within the Hugging Face cache that it is a snapshot in; links to
    folders, which may go round in circles, are refused.
    """
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in IGNORED)
        for name in folders:
            if (path := pathlib.Path(folder) / name).is_symlink():
                raise UserError(f"{path}: is a link to a folder, expected the folder itself")
        for name in sorted(names):
            path = pathlib.Path(folder) / name
            refuse_links_out(root, path)
            if (relative := path.relative_to(root).as_posix()) != seal.NAME:
                yield relative


def _has_weights(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any(path.name.endswith((".safetensors", ".safetensors.index.json"))
                                   for path in folder.iterdir())


def component_of(config: dict) -> str | None:
    """The component whose config.json this is."""
    kinds = {"glm_image": "vision_language_encoder", "GlmImageTransformer2DModel": "transformer",
             "AutoencoderKL": "vae", "t5": "text_encoder"}
    return kinds.get(config.get("model_type")) or kinds.get(config.get("_class_name"))


def _component(root: pathlib.Path, path: str, kind: Component) -> ComponentFolder:
    config = read_json(root / path / "config.json")
    return ComponentFolder(path, kind, config, *weight_files(root / path, WEIGHT_STEM[kind.names.COMPONENT]))


def weight_files(folder: pathlib.Path, stem: str) -> tuple[dict[str, TensorFile], str | None, list[str]]:
    """({file name: open file}, name of the index json or None, problems) of a folder with weights of one model."""
    index, single = f"{stem}.safetensors.index.json", f"{stem}.safetensors"
    present = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors"))
    if not (folder / index).exists():
        problems = [f"{single} is missing"] if single not in present else []
        problems += [f"{name} is not a file of this component" for name in present if name != single]
        return {name: open_weights(folder, name) for name in present if name == single}, None, problems
    weight_map = read_weight_map(folder / index)
    named = sorted(set(weight_map.values()))
    problems = [f"{name} is missing, {index} names it" for name in named if name not in present]
    problems += [f"{index} does not name {name}" for name in present if name not in named]
    files = {name: open_weights(folder, name) for name in named if name in present}
    return files, index, problems + _index_faults(index, weight_map, files)


def _index_faults(index: str, weight_map: dict, files: dict[str, TensorFile]) -> list[str]:
    absent = [f"{name} ({file})" for name, file in weight_map.items() if file in files and name not in files[file]]
    stray = [f"{name} ({file})" for file, opened in files.items() for name in opened.names
             if weight_map.get(name) != file]
    return ([f"{index} names {len(absent)} tensors that are not in their file: {', '.join(absent[:10])}"] if absent
            else []) + ([f"{len(stray)} tensors are not where {index} says: {', '.join(stray[:10])}"] if stray else [])
