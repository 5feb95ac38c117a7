"""Helpers: run a tool in this process, compare folders, spoil one."""

import json
import pathlib
import shutil

from mindglm.checkpoint.tensors import TensorFile, write_tensors
from tests.golden import REPO


def contents(root: pathlib.Path) -> dict[str, bytes]:
    """{relative path: bytes} of every file."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def copy_of_repo(target: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(REPO, target))


def rewrite(path: pathlib.Path, change) -> None:
    """Writes a safetensors file again after `change(dict of arrays)`."""
    file = TensorFile(path)
    arrays = {name: file.raw(name).copy() for name in file.names}
    metadata = file.metadata
    change(arrays)
    write_tensors(path, arrays, metadata)


def rewrite_index(path: pathlib.Path, change) -> None:
    """Writes an index json again after `change(weight_map)`."""
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content, indent=2) + "\n")
