"""Parameters: allocated empty, then filled from a counter-based generator keyed by each parameter's full name.

A value therefore depends on (seed, name) alone: not on the rank, the order of construction or the number of stages.
"""

import math

import numpy as np
from mindspore import Parameter, Tensor

from mindglm.order import initial_values


def param(shape: tuple[int, ...], init="zeros", dtype=np.float32) -> Parameter:
    """A trainable Parameter of zeros that remembers how to be initialised.

    Args:
        shape: its shape.
        init: "zeros", "ones", or ("normal", std); what `init_parameters` will write.
    """
    assert init in ("zeros", "ones") or init[0] == "normal", init
    fill = np.ones if init == "ones" else np.zeros
    parameter = Parameter(Tensor.from_numpy(fill(shape, dtype)))
    parameter.mindglm_init = init
    return parameter


def init_parameters(cell, seed: int) -> None:
    """Draw every Parameter of `cell` that was made by `param`, from (seed, full name)."""
    for parameter in cell.get_parameters():
        init = getattr(parameter, "mindglm_init", None)
        if isinstance(init, tuple):
            values = normal(seed, parameter.name, parameter.shape) * np.float32(init[1])
            parameter.set_data(Tensor(values))


def normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 values, a pure function of (seed, name, shape)."""
    return initial_values(seed, name).standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)
