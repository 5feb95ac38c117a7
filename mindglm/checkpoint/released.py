"""The released folder layout: one component a folder, `config.json` + safetensors in one file or several with an index.

    <dir>/vision_language_encoder/{config.json, model-0000i-of-0000n.safetensors, model.safetensors.index.json}
    <dir>/transformer/{config.json, diffusion_pytorch_model....safetensors}
    <dir>/vae/{config.json, diffusion_pytorch_model.safetensors}
    <dir>/text_encoder/{config.json, model.safetensors}
"""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping

import numpy as np

from mindglm.checkpoint.disk import read_small, refuse_links_out, sync_folder, write_text
from mindglm.checkpoint.metadata import plain_name
from mindglm.checkpoint.tensors import TensorFile, to_bfloat16, to_float32, write_tensors
from mindglm.errors import UserError

WEIGHT_STEM = {
    "vision_language_encoder": "model", "text_encoder": "model",
    "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
}
"""Component folder -> the stem of its weight files (transformers or diffusers)."""

METADATA = {"format": "pt"}
"""What the libraries want to find in a weight file."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MAX_SHARD_BYTES = 5 * 10**9


def open_component(root: str | os.PathLike, component: str) -> dict[str, TensorFile]:
    """{tensor name: open file} of a component; the index json when there is one, else the single file."""
    folder, stem = pathlib.Path(root) / component, WEIGHT_STEM[component]
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not index.exists():
        if not single.exists():
            raise UserError(f"{folder}: no {single.name} and no {index.name}; expected the '{component}' component "
                            "of a folder in the released GLM-Image layout")
        file = open_weights(folder, single.name)
        return {name: file for name in file.names}
    weight_map = read_weight_map(index)
    files = {name: open_weights(folder, name) for name in sorted(set(weight_map.values()))}
    lost = sorted(name for name, file in weight_map.items() if name not in files[file])
    if lost:
        raise UserError(f"{index}: names tensors that are not in their files: {_some(lost)}; download the folder again")
    return {name: files[file] for name, file in weight_map.items()}


def open_weights(folder: pathlib.Path, name: str) -> TensorFile:
    """A weight file of a component; a link that leads out of the folder is refused."""
    refuse_links_out(folder, folder / name)
    return TensorFile(folder / name)


def read_weight_map(path: pathlib.Path) -> dict[str, str]:
    """{tensor: file} of an index json. UserError for anything else, and for files that are not beside it."""
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{path}: holds no weight_map {{tensor: file}}; download it again")
    for file in weight_map.values():
        try:
            plain_name(file)
        except ValueError as error:
            raise UserError(f"{path}: {error}; expected names of files beside it") from None
    return weight_map


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def component_header(root: str | os.PathLike, component: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{tensor name: (dtype code, shape)} of a component, without reading its data."""
    return {name: (file.dtype(name), file.shape(name)) for name, file in open_component(root, component).items()}


def has_component(root: str | os.PathLike, component: str) -> bool:
    """Whether the folder holds weights of this component."""
    folder, stem = pathlib.Path(root) / component, WEIGHT_STEM[component]
    return (folder / f"{stem}.safetensors").exists() or (folder / f"{stem}.safetensors.index.json").exists()


def read_component(root: str | os.PathLike, component: str,
                   names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """float32 copies of a component's tensors: all of them, or `names` in their order.

    Raises UserError when the folder, a file or one of `names` is missing.
    """
    return {name: np.array(to_float32(raw)) for name, raw in read_component_raw(root, component, names).items()}


def read_component_raw(root: str | os.PathLike, component: str, names: Iterable[str] | None = None):
    """As `read_component`, but read-only views in the stored dtype (bfloat16 as uint16), nothing copied."""
    files = open_component(root, component)
    names = list(files) if names is None else list(names)
    lost = [name for name in names if name not in files]
    if lost:
        raise UserError(f"{pathlib.Path(root) / component}: {len(lost)} of {len(names)} wanted tensors are missing: "
                        f"{_some(lost)}; this is the checkpoint of another model or an incomplete one")
    return {name: files[name].raw(name) for name in names}


def component_config(root: str | os.PathLike, component: str) -> dict:
    """The component's config.json."""
    return read_json(pathlib.Path(root) / component / "config.json")


def read_json(path: pathlib.Path) -> dict:
    """A json file of the layout; UserError when it is missing, broken or larger than any such file."""
    try:
        return json.loads(read_small(path, follow_links=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a folder in the released GLM-Image layout") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not a json file ({error})") from error


def write_component(root: str | os.PathLike, component: str, config: Mapping, tensors: Mapping[str, np.ndarray],
                    dtype: str, weight_map: Mapping[str, str] | None = None, max_shard_bytes: int = MAX_SHARD_BYTES,
                    extra_files: Mapping[str, bytes] | None = None) -> pathlib.Path:
    """Write (or replace) `<root>/<component>`; the folder appears whole or not at all.

    config: what goes into config.json. tensors: float arrays, or raw bfloat16 (uint16), written as they are when
    `dtype` is "bfloat16". dtype: "bfloat16" | "float32". weight_map: {tensor: file} to keep the shards of a release.
    extra_files: further files of the folder ({name: content}), e.g. generation_config.json.
    """
    assert dtype in ("bfloat16", "float32"), dtype
    convert = to_bfloat16 if dtype == "bfloat16" else to_float32
    root = pathlib.Path(root)
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".{component}.{os.getpid()}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    shapes = {name: np.shape(array) for name, array in tensors.items()}
    shards = shard(component, shapes, dtype, weight_map, max_shard_bytes)
    for file, names in shards.items():
        write_tensors(staging / file, {name: convert(np.asarray(tensors[name])) for name in names}, METADATA)
    for name, text in index_files(component, shapes, shards, dtype).items():
        write_text(staging / name, text)
    for name, content in (extra_files or {}).items():
        (staging / name).write_bytes(content)
    write_text(staging / "config.json", config_text(config))
    sync_folder(staging)
    replace_folder(staging, root / component)
    return root / component


def replace_folder(staging: pathlib.Path, target: pathlib.Path) -> None:
    """Put a finished staging folder in the place of `target`, which may exist."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(staging, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(target: pathlib.Path) -> None:
    """Remove what killed processes left beside `target`: unfinished folders, and those that it replaced.

    A process killed between the two renames of replace_folder left no `target`: what stood there is put back. Only for
    a caller that knows that nobody else writes `target` now.
    """
    replaced = target.parent.glob(f".{target.name}.*.old")
    for old in sorted(replaced, key=lambda path: path.stat().st_ctime, reverse=True):  # set by the rename
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)
    for staging in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(staging, ignore_errors=True)


def shard(component: str, shapes: Mapping[str, tuple[int, ...]], dtype: str,
          weight_map: Mapping[str, str] | None = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, list[str]]:
    """{weight file: tensor names}: by weight_map, or in the order of `shapes`, a new file when one would not fit."""
    stem = WEIGHT_STEM[component]
    if weight_map is not None:
        assert set(weight_map) == set(shapes), "the weight map names other tensors"
        shards = {}
        for name in shapes:
            shards.setdefault(weight_map[name], []).append(name)
        return shards
    groups, room = [[]], max_shard_bytes
    for name, shape in shapes.items():
        size = math.prod(shape) * ITEM_BYTES[dtype]
        if groups[-1] and size > room:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def index_files(component: str, shapes: Mapping[str, tuple[int, ...]], shards: Mapping[str, list[str]],
                dtype: str) -> dict[str, str]:
    """{file name: text} of the index json that goes with `shards`; {} for a single file."""
    stem = WEIGHT_STEM[component]
    if list(shards) == [f"{stem}.safetensors"]:
        return {}
    values = sum(math.prod(shape) for shape in shapes.values())
    sizes = {"total_size": values * ITEM_BYTES[dtype]}
    if stem == "model":  # transformers also counts the parameters, diffusers does not
        sizes = {"total_parameters": values, **sizes}
    place = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": sizes, "weight_map": dict(sorted(place.items()))}
    return {f"{stem}.safetensors.index.json": json.dumps(index, indent=2) + "\n"}


def config_text(config: Mapping) -> str:
    """config.json as it is written."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
