"""Everything a run must remember between two steps, to and from a checkpoint.

The data position is not among it: batches and draws are functions of the step.
"""

import pathlib
from dataclasses import dataclass

import numpy as np
import yaml
from mindspore import Parameter, Tensor

from mindglm.checkpoint import store
from mindglm.errors import UserError
from mindglm.parallel import transport
from mindglm.train.layout import Layout

FORBIDDEN = ("trainer.type", "model.model_config", "model.frozen")
"""Recipe keys that a resumed run cannot change: the tensors of the checkpoint depend on them."""


@dataclass
class Counters:
    """Numbers of a run."""

    step: int = 0
    """Optimizer steps done, with the skipped ones."""
    updates: int = 0
    """Steps whose update was applied."""
    skipped: int = 0
    skipped_in_row: int = 0


def save(root: pathlib.Path, counters: Counters, parameters: dict[str, Parameter], optimizer, ema, recipe, text: str):
    """Write the checkpoint of counters.step, unless it is there already. Called by all ranks; rank 0 writes.

    What is sharded or lies on another stage comes to rank 0 first. Trained weights are stored as their float32 masters.
    """
    if transport.broadcast_object(counters.step in store.steps(root)):
        return
    layout = optimizer.space.layout
    tensors = {"model": whole_model(parameters, optimizer), "opt": joined(optimizer.state(), layout)}
    if ema is not None:
        tensors["ema"] = joined(ema.state(), layout)
    if transport.rank() > 0:
        return
    common = {"epoch_num": 1, "step_num": counters.step, "global_step": counters.step,
              "global_batch_size": recipe.runner_config.global_batch_size, "loss_scale": 1.0, **vars(counters)}
    store.save(root, counters.step, tensors, common, text, recipe.checkpoint.prefix,
               recipe.checkpoint.keep_checkpoint_max)


def whole_model(parameters: dict[str, Parameter], optimizer) -> dict[str, np.ndarray]:
    """{name: array} of all stages' parameters on rank 0, trained ones as their masters. Called by all ranks."""
    masters = optimizer.named(optimizer.masters())
    here = {name: masters[name] if name in masters else parameter.asnumpy() for name, parameter in parameters.items()}
    return joined(here, optimizer.space.layout)


def joined(arrays: dict[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The arrays of all stages together on rank 0; elsewhere something of no use. Called by all ranks."""
    if layout.stages == 1 or layout.data_index > 0:  # rank 0 is in the pipeline of data_index 0
        return arrays
    return {name: array for part in transport.gather_objects(arrays, layout.stage_group)
            for name, array in part.items()}


def resume(root: pathlib.Path, wanted: bool, parameters: dict[str, Parameter], optimizer, ema, text: str):
    """Continue from the newest checkpoint under `root`; returns (counters, sentences on what was done).

    Raises UserError when there is one but `wanted` is False, when it is damaged, or when it belongs to another model.
    """
    found = transport.broadcast_object(store.steps(root))
    if not found:
        return Counters(), []
    if not wanted:
        raise UserError(f"{root} holds checkpoints of steps {found}, but resume_training is false; remove the folder, "
                        "give another output_dir, or set resume_training: true to go on from them")
    loaded = store.load(root, found[-1])
    changes = recipe_changes(loaded.recipe_text, text)
    forbidden = [change for change in changes if change.startswith(FORBIDDEN)]
    if forbidden:
        raise UserError(f"{loaded.folder} cannot be continued by this recipe, which changes {'; '.join(forbidden)}. "
                        "Undo the change, or give another output_dir and start from an exported model by "
                        "pretrained_model_dir")
    _load_parameters(loaded, parameters, optimizer)
    counters = Counters(**{name: loaded.common[name] for name in vars(Counters())})
    optimizer.load_state(loaded.tensors["opt"], counters.updates)
    said = [f"resumed from {loaded.folder}"] + [f"changed since that checkpoint: {change}" for change in changes]
    if ema is not None:
        average = loaded.tensors.get("ema")
        ema.load_state(average if average is not None else loaded.tensors["model"])
    return counters, said


def _load_parameters(loaded: store.Checkpoint, parameters: dict[str, Parameter], optimizer) -> None:
    arrays = loaded.tensors["model"]
    layout = optimizer.space.layout
    names = set(parameters)
    if layout.stages > 1:
        names = set().union(*transport.gather_objects(names, layout.stage_group))
    faults = sorted(names ^ set(arrays)) or [
        name for name, parameter in parameters.items() if tuple(parameter.shape) != arrays[name].shape]
    if faults:
        raise UserError(f"{loaded.folder} is the checkpoint of another model; differing tensors: {faults[:5]}")
    trained = {parameter.name for parameter in optimizer.params}
    optimizer.set_masters(optimizer.owned(arrays))
    for name, parameter in parameters.items():
        if name not in trained:
            parameter.set_data(Tensor(np.array(arrays[name])).astype(parameter.dtype))


def recipe_changes(before: str, after: str) -> list[str]:
    """"key: old -> new" for every key whose value differs between two resolved recipes."""
    old, new = _flatten(yaml.safe_load(before)), _flatten(yaml.safe_load(after))
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted(set(old) | set(new))
            if old.get(key) != new.get(key)]


def _flatten(value, prefix: str = "") -> dict:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: item for name, part in value.items()
            for key, item in _flatten(part, f"{prefix}.{name}" if prefix else str(name)).items()}
