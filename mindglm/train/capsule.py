"""A step that could not be done, kept whole: what is needed to do it again elsewhere (mindglm.train.replay).

    <output_dir>/capsules/step_00000120/
        capsule.json                     which step, which samples under which keys, what came out, norms by tensor;
                                         its random numbers are those of order.rng(seed, step - 1, key, purpose)
        recipe.yaml, ledger.jsonl        of the run, up to that step
        inputs-0000.safetensors          per data-parallel rank: the arrays that the network was given
        weights/iteration_00000120/      a checkpoint: a step that is not finite leaves the weights as they were
"""

import json
import math
import pathlib
import shutil
from dataclasses import dataclass

import mindspore as ms
import numpy as np

import mindglm
from mindglm import ops
from mindglm.checkpoint.disk import write_text
from mindglm.checkpoint.tensors import TensorFile, write_tensors
from mindglm.errors import UserError
from mindglm.parallel import transport
from mindglm.train.saver import Saver

VERSION = 1
NEEDED = {"step": int, "loss": (float, str), "grad_norm": (float, str), "samples": list, "keys": list,
          "input_files": int}
"""What replay asks of capsule.json."""


@dataclass(frozen=True)
class Capsule:
    """A capsule that was read."""

    folder: pathlib.Path
    about: dict
    """capsule.json"""
    recipe_text: str
    inputs: list[tuple[np.ndarray, ...]]
    """The micro-batches of the global batch, in the order of samples."""

    @property
    def step(self) -> int:
        """Number of the step, from 0: what order.batch_ids and order.rng are asked with."""
        return self.about["step"] - 1


def write(trainer, result, lr: float, micro_batches, witness, files: dict[str, bytes]) -> str:
    """Write the capsule of the step that has just failed; returns a sentence for the error. Called by all ranks.

    trainer: a loop.Trainer. result: the step's StepResult. files: small files of the run that go into it.
    """
    folder = trainer.output_dir / "capsules" / f"step_{trainer.counters.step:08d}"
    failure = transport.broadcast_object(_remove_older(folder) if transport.rank() == 0 else "")
    if failure:
        return f"The capsule of the step could not be written ({failure})"
    norms = _norms(trainer, result)
    failure = _save_weights(trainer, folder / "weights")
    bucket, ids, keys = trainer.batches.ids(trainer.counters.step - 1)
    about = {
        "version": VERSION, "step": trainer.counters.step, "loss": result.loss, "grad_norm": result.grad_norm,
        "lr": lr, "skipped_in_row": trainer.counters.skipped_in_row, "seed": trainer.recipe.seed,
        "bucket": int(bucket), "samples": ids.tolist(), "keys": keys, "purposes": witness.purposes,
        "processes": transport.world(), "input_files": trainer.layout.data_parallel, "device": ops.DEVICE,
        "weights_dtype": str(next(iter(trainer.parameters.values())).dtype), "mindglm": mindglm.__version__,
        "mindspore": ms.__version__, "norms": norms}
    failures = transport.gather_objects(failure or _write_own(trainer, folder, about, micro_batches, files))
    failure = next(filter(None, failures), "")
    if failure:
        return f"The capsule of the step could not be written ({failure})"
    return f"The step is kept in {folder}; `mindglm replay {folder}` does it again and says why"


def _remove_older(folder: pathlib.Path) -> str:
    """Remove the capsule that an earlier run left of the same step, with its weights; what went wrong, or ""."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        return str(error)
    return ""


def _save_weights(trainer, folder: pathlib.Path) -> str:
    """A checkpoint of the weights as they are; what went wrong, or ""."""
    saver = Saver(folder, trainer.recipe, trainer.recipe_text)
    saver.save(trainer.counters, trainer.parameters, trainer.optimizer, None)
    saver.finish()
    saver.close()
    return saver.failure or ""


def _write_own(trainer, folder: pathlib.Path, about: dict, micro_batches, files: dict[str, bytes]) -> str:
    """This rank's files; what went wrong, or ""."""
    layout = trainer.layout
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if layout.stage == 0:
            arrays = {f"{i:04d}.{j:02d}": np.ascontiguousarray(array)
                      for i, batch in enumerate(micro_batches) for j, array in enumerate(batch)}
            write_tensors(folder / f"inputs-{layout.data_index:04d}.safetensors", arrays, {"format": "mindglm"})
        if trainer.leads:
            write_text(folder / "recipe.yaml", trainer.recipe_text)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            write_text(folder / "capsule.json", json.dumps(_plain(about), indent=1) + "\n")
    except OSError as error:
        return str(error)
    return ""


def _norms(trainer, result) -> dict[str, dict]:
    """{tensor: norm of its weights and of its gradient sum, numbers that are not finite}, of all stages on rank 0."""
    optimizer = trainer.optimizer
    flat = np.concatenate([part.asnumpy() for part in result.gradients])
    gradients = optimizer.named(flat)
    masters = optimizer.named(optimizer.masters())
    here = {name: {"weight": _norm(masters[name]), "gradient": _norm(gradient),
                   "not_finite": int(gradient.size - np.isfinite(gradient).sum())}
            for name, gradient in gradients.items()}
    if trainer.layout.data_index > 0 or trainer.layout.stages == 1:
        return here
    return {name: norms for part in transport.gather_objects(here, trainer.layout.stage_group)
            for name, norms in part.items()}


def _norm(array: np.ndarray) -> float:
    return float(np.sqrt(np.square(array, dtype=np.float64).sum()))


def _plain(value):
    """JSON has no NaN: numbers that are not finite become texts."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read(folder: pathlib.Path) -> Capsule:
    """The capsule in a folder. UserError when it is none, or not whole."""
    folder = pathlib.Path(folder)
    try:
        about = json.loads((folder / "capsule.json").read_text(encoding="utf-8"))
        recipe_text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no capsule of a step ({error}); expected a folder such as "
                        "<output_dir>/capsules/step_00000120") from error
    about = about if isinstance(about, dict) else {}
    if about.get("version") != VERSION:
        raise UserError(f"{folder}: capsule version {about.get('version')}, expected {VERSION}")
    lost = [key for key, kind in NEEDED.items() if not isinstance(about.get(key), kind)]
    if lost:
        raise UserError(f"{folder / 'capsule.json'}: lacks {lost}; expected the file as the run wrote it")
    inputs = []
    for rank in range(about["input_files"]):
        file = TensorFile(folder / f"inputs-{rank:04d}.safetensors")
        batches: dict[str, list[np.ndarray]] = {}
        for name in sorted(file.names):
            batches.setdefault(name.partition(".")[0], []).append(np.array(file.raw(name)))
        inputs += [tuple(batch) for _, batch in sorted(batches.items())]
    if not inputs:
        raise UserError(f"{folder}: holds no inputs; expected the arrays that the network was given")
    return Capsule(folder, about, recipe_text, inputs)
