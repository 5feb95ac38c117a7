"""Everything a run must remember between two steps, to and from a checkpoint.

Weights, optimizer state and average are cut as the ranks own them (train/buckets.py) and stored as ranges of global
tensors, so that each rank reads and writes its own part alone, whatever layout wrote it. The rest is numbers: batches,
learning rate and random draws are functions of the step.
"""

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import bfloat16 as ms_bfloat16

from mindglm.checkpoint import store
from mindglm.checkpoint.stored import Checkpoint, Damaged, Tensors, damaged
from mindglm.checkpoint.tensors import to_bfloat16, to_float32
from mindglm.errors import UserError
from mindglm.ledger import chain
from mindglm.parallel import collect, transport
from mindglm.recipe import differences
from mindglm.train.layout import Layout
from mindglm.train.optimizer import MOMENTS


@dataclass
class Counters:
    """Numbers of a run."""

    step: int = 0
    """Optimizer steps done, with the skipped ones."""
    updates: int = 0
    """Steps whose update was applied."""
    skipped: int = 0
    skipped_in_row: int = 0


@dataclass
class Resumed:
    """What a run goes on from; as it stands, a run that begins."""

    counters: Counters = field(default_factory=Counters)
    notes: list[str] = field(default_factory=list)
    """Sentences on what was done."""
    changes: list[differences.Change] = field(default_factory=list)
    """How the recipe differs from that of the checkpoint."""
    common: dict = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """What `saver.Saver.save` was given as files; on rank 0."""


# ---- to a checkpoint


def owned_parts(parameters: dict[str, Parameter], optimizer, ema,
                hold: Callable[[str, np.ndarray], np.ndarray]) -> dict[str, list[store.Part]]:
    """{kind: parts} that this rank writes: what it alone keeps, and the first data-parallel rank what all keep.

    Trained weights are stored as their float32 masters. hold(name, array): called for every array to be written.
    """
    space = optimizer.space
    first = space.layout.data_index == 0
    if not first and space.shards == 1:
        return {}
    shapes, ranges = {p.name: p.shape for p in space.params}, space.owned_ranges()

    def cut(what: str, vector: np.ndarray, prefix: str = "") -> list[store.Part]:
        vector = hold(what, vector)
        return [store.Part(prefix + name, shapes[name], vector[place:place + stop - start], start)
                for name, start, stop, place in ranges]

    frozen = [store.Part(name, parameter.shape, hold(name, _values(parameter)))
              for name, parameter in parameters.items() if first and name not in shapes]
    moments = [cut(kind, moment, f"{kind}.") for kind, moment in zip(MOMENTS, optimizer.moments())]
    found = {"model": cut("masters", optimizer.masters()) + frozen, "opt": sum(moments, [])}
    return found if ema is None else {**found, "ema": cut("average", ema.average)}


def _values(parameter: Parameter) -> np.ndarray:
    """The values of a Parameter that does not train; bfloat16 as raw uint16, not always a copy."""
    if parameter.dtype == ms_bfloat16:
        return to_bfloat16(parameter.float().asnumpy())
    return parameter.asnumpy()


def common_of(counters: Counters, recipe, extra: Mapping | None = None) -> dict:
    """common.json: the names mindformers users know, our counters, and what everything else is a function of."""
    batch = recipe.runner_config.global_batch_size
    return {"epoch_num": 1, "step_num": counters.step, "global_step": counters.step, "global_batch_size": batch,
            "loss_scale": 1.0, **vars(counters), "samples": counters.step * batch,
            "lr_schedule": {"step": counters.step, "total_steps": recipe.lr_total_steps},
            "rng": {"seed": recipe.seed, "draws": "a function of (seed, step, sample, purpose): mindglm/order"},
            **(extra or {})}


def joined(arrays: dict[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """The arrays of all stages together on rank 0; elsewhere something of no use. Called by all ranks."""
    if layout.stages == 1 or layout.data_index > 0:  # rank 0 is in the pipeline of data_index 0
        return arrays
    return collect.on_first(arrays, layout.stage_group)


# ---- from a checkpoint


def resume(root: pathlib.Path, recipe, recipe_text: str, parameters: dict[str, Parameter], optimizer, ema,
           fallback: bool = False) -> Resumed:
    """Continue from the newest checkpoint under `root`, if there is one. Called by all ranks; each reads its part.

    fallback: a damaged checkpoint is set aside and the one before it taken. Raises UserError for a damaged one
    otherwise (file and tensor named), when the recipe does not want to resume, or when it is of another model.
    """
    found = _found(root)
    if not found:
        return Resumed()
    if not recipe.resume_training:
        raise UserError(f"{root} holds checkpoints of steps {found}, but resume_training is false; remove the folder, "
                        "give another output_dir, or set resume_training: true to go on from them")
    damages = {}
    for step in reversed(found):
        folder = root / f"iteration_{step:08d}"
        reading, damage = _read(folder, recipe_text, parameters, optimizer, ema)
        if damage is None:
            reading.set()
            passed = [f"passed over a damaged checkpoint, now {_aside(root, late)}: {why}"
                      for late, why in damages.items()]
            reading.resumed.notes = [*passed, f"resumed from {folder}", *map(str, reading.resumed.changes)]
            return reading.resumed
        if not fallback:
            raise UserError(f"{damage}; to go on from the checkpoint before it, start with --fallback, which sets this "
                            "one aside")
        damages[step] = damage  # set aside once a whole one is found: without any, the next start would begin anew
    raise UserError(f"{root}: no whole checkpoint is left: {'; '.join(damages.values())}. To begin anew, move the run "
                    "away or give another output_dir")


def resumes(root: pathlib.Path, recipe_text: str) -> bool:
    """Whether there is a checkpoint to continue from. Called by all ranks before anything is built by the recipe.

    UserError that lists all forbidden changes since the newest one: a model built by the new recipe would be refused
    for the first of them alone. Damage is left to `resume`.
    """
    found = _found(root)
    if not found:
        return False
    folder = root / f"iteration_{found[-1]:08d}"
    try:
        differences.of_resume(Checkpoint(folder).recipe_text, recipe_text)
    except Damaged:
        return True
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return True


def _found(root: pathlib.Path) -> list[int]:
    """Steps of the checkpoints, as rank 0 sees them. UserError, on all ranks, when it cannot look."""
    found = fault = None
    if transport.rank() == 0:
        try:
            found = store.named(root)
        except OSError as error:
            fault = f"{root}: cannot be read ({error}); expected a folder that this run may read and write"
    found, fault = transport.broadcast_object((found, fault))
    if fault:
        raise UserError(fault)
    return found


def _aside(root: pathlib.Path, step: int) -> str:
    """Set a damaged checkpoint aside, on rank 0; its name then."""
    return store.set_aside(root, step).name if transport.rank() == 0 else ""


def _read(folder: pathlib.Path, recipe_text: str, parameters, optimizer, ema) -> tuple["_Reading | None", str | None]:
    """(what this rank read, None), or (anything, what is damaged, found by whichever rank). Collective.

    After damage, weights and moments may hold what was read so far: another checkpoint is read over them, or the run
    ends.
    """
    names = set(parameters)
    if optimizer.space.layout.stages > 1:
        names = set().union(*transport.gather_objects(names, optimizer.space.layout.stage_group))
    reading = damage = refusal = None
    try:
        reading = _Reading(folder, recipe_text, names, parameters, optimizer, ema)
    except Damaged as error:
        damage = str(error)
    except UserError as error:
        refusal = f"{folder}: {error}"
    outcomes = transport.gather_objects((damage, refusal))
    for _, refusal in outcomes:
        if refusal:
            raise UserError(refusal)
    return reading, next((damage for damage, _ in outcomes if damage), None)


class _Reading:
    """This rank's part of a checkpoint: read and checked on construction, put in its place by `set`."""

    def __init__(self, folder: pathlib.Path, recipe_text: str, names: set[str], parameters, optimizer, ema):
        """names: of all stages' parameters."""
        checkpoint = Checkpoint(folder)
        common, own = checkpoint.common, ("common.json", "recipe.yaml")
        changes = differences.of_resume(checkpoint.recipe_text, recipe_text)
        lost = [name for name in vars(Counters()) if not isinstance(common.get(name), int)]
        if lost:
            raise damaged(folder / "common.json", f"it lacks {lost}")
        if not (common["step"] == checkpoint.step == _step_of(folder)):
            raise damaged(folder / "common.json", f"of step {common['step']}, metadata.json of {checkpoint.step}")
        self.resumed = Resumed(Counters(**{name: common[name] for name in vars(Counters())}), [], changes, common)
        if transport.rank() == 0:
            self.resumed.files = {name: checkpoint.file(name) for name in checkpoint.file_names if name not in own}
            _check_ledger(folder, self.resumed.files)
        self._parameters, self._optimizer, self._ema = parameters, optimizer, ema
        model, opt, average = (checkpoint.kinds.get(kind) for kind in ("model", "opt", "ema"))
        _check(model, opt, names, parameters, optimizer)
        self._masters, self._moments = optimizer.masters(), optimizer.moments()
        self._fill(model, self._masters)
        for kind, moment in zip(MOMENTS, self._moments):
            self._fill(opt, moment, f"{kind}.")
        trained = {p.name for p in optimizer.params}
        self._frozen = {name: model.array(name) for name in parameters if name not in trained}
        self._has_average = average is not None
        if ema is not None and self._has_average:
            self._fill(average, ema.average)
        elif self._has_average:  # nobody needs it; damage is told all the same
            for name in average.names[transport.rank()::transport.world()]:
                average.array(name)

    def _fill(self, stored: Tensors, vector: np.ndarray, prefix: str = "") -> None:
        for name, start, stop, place in self._optimizer.space.owned_ranges():
            stored.read(prefix + name, vector[place:place + stop - start], start)

    def set(self) -> None:
        """Collective, as optimizer.set_masters is."""
        self._optimizer.set_masters(self._masters)
        for number, moment in enumerate(self._moments):
            self._optimizer.set_moment(number, moment, self.resumed.counters.updates)
        for name, values in self._frozen.items():
            parameter = self._parameters[name]
            values = to_float32(values) if values.dtype == np.uint16 else values
            parameter.set_data(Tensor(values).astype(parameter.dtype))
        if self._ema is not None and not self._has_average:
            np.copyto(self._ema.average, self._optimizer.masters())


def _step_of(folder: pathlib.Path) -> int:
    return int(folder.name.removeprefix("iteration_"))


def _check_ledger(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    """Damaged when the ledger was altered before the checkpoint was written: its checksum says nothing of that."""
    try:
        chain.parse(files.get(chain.NAME, b"").decode(errors="replace"), chain.NAME)
    except UserError as error:
        raise damaged(folder / chain.NAME, error) from error


def _check(model: Tensors | None, opt: Tensors | None, names: set[str], parameters, optimizer) -> None:
    """UserError unless the checkpoint is of this model."""
    faults = sorted(names ^ set(model.names if model else ()))
    faults = faults or [name for name, parameter in parameters.items() if tuple(parameter.shape) != model.shape(name)]
    faults = faults or [p.name for p in optimizer.params if model.dtype(p.name) != "F32"]
    moments = [(f"{kind}.{p.name}", p) for kind in MOMENTS for p in optimizer.params]
    faults = faults or [name for name, p in moments if opt is None or name not in opt
                        or (opt.shape(name), opt.dtype(name)) != (tuple(p.shape), "F32")]
    if faults:
        raise UserError(f"is the checkpoint of another model; differing tensors: {faults[:5]}")
