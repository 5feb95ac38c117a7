"""Which parameters train, and what they start from."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from mindspore import Parameter, Tensor

from mindglm.checkpoint import start
from mindglm.checkpoint.released import WEIGHT_STEM
from mindglm.checkpoint.tensors import to_float32
from mindglm.errors import UserError

LISTED = 8


def all_parameters(objective) -> dict[str, Parameter]:
    """{name: Parameter} of the network and the model, each once."""
    found = {}
    for cell in (objective.network, objective.model):
        for parameter in cell.get_parameters():
            other = found.setdefault(parameter.name, parameter)
            assert other is parameter, f"two parameters are named {parameter.name}"
    return found


def trained_parameters(objective, frozen: tuple[str, ...]) -> list[Parameter]:
    """Freeze the parameters whose names begin with one of `frozen`; returns those that train, ordered by name.

    Raises UserError when a prefix fits no parameter or nothing is left.
    """
    parameters = all_parameters(objective)
    unknown = [prefix for prefix in frozen if not any(name.startswith(prefix) for name in parameters)]
    if unknown:
        raise UserError(f"model.frozen: no parameter begins with {unknown}; there are e.g. {sorted(parameters)[:3]}")
    for name, parameter in parameters.items():
        if name.startswith(tuple(frozen)):
            parameter.requires_grad = False
    inside = {parameter.name for parameter in objective.network.trainable_params()}
    trained = [parameters[name] for name in sorted(inside)]
    if not trained:
        raise UserError(f"model.frozen {list(frozen)} leaves no parameter to train; name fewer prefixes")
    return trained


def load_start(objective, model_dir: str | None, fresh: tuple[str, ...], component: str, shapes: dict,
               aliases: Mapping[str, str] = MappingProxyType({})) -> str:
    """Set the model's Parameters from what pretrained_model_dir names (checkpoint/start.py); returns a sentence.

    A pipeline stage reads the tensors it holds and no other; one tensor at a time is in memory besides the Parameters.

    shapes: {name: shape} of the whole component by the recipe's model_config. aliases: names under which a file may
    hold a tensor a second time, or instead. Tensors may be missing under a `fresh` prefix only; a folder without the
    component at all leaves the random start. Raises one UserError that lists all tensors that are missing, unexpected
    or of another shape.
    """
    if model_dir is None:
        return f"'{component}' starts from random weights"
    if not start.holds_any(model_dir):
        raise UserError(f"pretrained_model_dir: {model_dir} holds no component; expected a folder in the released "
                        f"GLM-Image layout with some of {sorted(WEIGHT_STEM)}, or a training run with checkpoints")
    found = start.component(model_dir, component)
    header = found.header
    if not header:
        return f"{model_dir} has no '{component}': it starts from random weights"
    stored = {aliases.get(name, name): name for name in sorted(header, key=lambda name: name not in aliases)}
    header = {ours: header[name] for ours, name in stored.items()}
    parameters = {parameter.name: parameter for parameter in objective.model.get_parameters()}
    missing = [name for name in parameters if name not in header and not name.startswith(tuple(fresh))]
    unexpected = [name for name in header if name not in shapes]
    differing = [f"{name} is {list(header[name][1])}, expected {list(shapes[name])}"
                 for name in header if name in shapes and tuple(shapes[name]) != header[name][1]]
    if missing or unexpected or differing:
        faults = [f"{len(names)} {what}: {'; '.join(names[:LISTED])}{' ...' if len(names) > LISTED else ''}"
                  for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
                  if names]
        raise UserError(f"pretrained_model_dir: {start.place(model_dir, component)} is the checkpoint of another "
                        f"model than model.model_config describes. Tensors {', '.join(faults)}. Mend "
                        "model.model_config or pretrained_model_dir; a part that shall start from random is named in "
                        "model.fresh.")
    wanted = [name for name in parameters if name in header]
    for name in wanted:
        parameters[name].set_data(Tensor(np.array(to_float32(found.read(stored[name])))))
    return f"{len(wanted)} of {len(parameters)} tensors of '{component}' come from {model_dir}"
