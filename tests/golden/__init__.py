"""Reference fixtures: numbers of the public torch classes on a tiny checkpoint (see README.md beside this file)."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file

BASE = pathlib.Path(__file__).parent / "base"
REPO = BASE / "repo"


def fixture(family: str) -> dict[str, np.ndarray]:
    """All arrays of one fixture family."""
    return load_file(BASE / "fixtures" / f"{family}.safetensors")


def side_car(family: str) -> dict:
    """Strings, lists and numbers of one fixture family."""
    return json.loads((BASE / "fixtures" / f"{family}.json").read_text())


def rel_error(ours, reference) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    ours = ours.asnumpy() if hasattr(ours, "asnumpy") else np.asarray(ours)
    reference = np.asarray(reference)
    assert ours.shape == reference.shape, f"shape {ours.shape}, reference {reference.shape}"
    return float(np.abs(ours.astype(np.float64) - reference).max() / np.abs(reference).max())


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
