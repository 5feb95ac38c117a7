"""Reference fixtures: numbers of the public torch classes on a tiny checkpoint (see README.md beside this file)."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file

from mindglm.evaluate.precision.compare import rel_error

__all__ = ["BASE", "REPO", "VARIANTS", "fixture", "load", "rel_error", "side_car"]
BASE = pathlib.Path(__file__).parent / "base"
REPO = BASE / "repo"
VARIANTS = {path.name: path for path in sorted(BASE.parent.iterdir()) if (path / "fixtures").is_dir()}
"""Structures whose fixtures are in the repository: name -> folder with repo/ and fixtures/."""


def fixture(family: str) -> dict[str, np.ndarray]:
    """All arrays of one fixture family."""
    return load_file(BASE / "fixtures" / f"{family}.safetensors")


def side_car(family: str) -> dict:
    """Strings, lists and numbers of one fixture family."""
    return json.loads((BASE / "fixtures" / f"{family}.json").read_text())


def load(cell, component: str):
    """Set the Parameters of `cell` from the tiny checkpoint (float32); returns the cell."""
    from mindspore import Tensor

    from mindglm.checkpoint.released import read_component

    parameters = {p.name: p for p in cell.get_parameters()}
    tensors = read_component(REPO, component, names=parameters)
    for name, parameter in parameters.items():
        assert parameter.shape == tensors[name].shape, name
        parameter.set_data(Tensor(tensors[name]))
    return cell
