"""A training checkpoint -> a model folder: EMA or live weights of the trained component, the rest from where it began.

A training checkpoint (store.py) holds one component under our names, with optimizer moments and the recipe. What
comes out is what the run itself exports at its end, made at any step and without MindSpore.
"""

import os
import pathlib

from mindglm.checkpoint import conversion, matching, store
from mindglm.checkpoint.components import COMPONENTS, OF_STRUCTURE, Component
from mindglm.checkpoint.released import config_text
from mindglm.checkpoint.scan import ModelFolder, scan
from mindglm.checkpoint.stored import Checkpoint, Tensors
from mindglm.checkpoint.tensors import Stream, cast
from mindglm.checkpoint.writer import FolderWriter, check_apart, check_target, quiet
from mindglm.errors import UserError
from mindglm.models.names import Pair

TRAINING_ONLY = "training_only."
"""Parameters that only the objective needs (the tokenizer's pixel head) begin like this and are not exported."""
WEIGHTS = ("auto", "ema", "live")


def find(path: str | os.PathLike, step: int | None = None) -> pathlib.Path | None:
    """The iteration folder meant by `path`: itself, the newest below it or below its checkpoint/; None if none is."""
    path = pathlib.Path(path)
    if store.is_named(path) or (path / "metadata.json").is_file() and (path / "recipe.yaml").is_file():
        return path
    for root in (path, path / "checkpoint"):
        if store.named(root):
            return store.locate(root, step)
    return None


def export(folder: pathlib.Path, target: str | os.PathLike, to: str, weights: str = "auto",
           base: str | os.PathLike | None = None, dtype: str | None = None, overwrite: bool = False,
           progress=quiet) -> pathlib.Path:
    """Writes the model folder of a checkpoint; returns `target`.

    folder: an iteration folder. to: "hf" | "mindglm" (sealed). weights: "ema", "live", or "auto": EMA if there is one.
    base: folder of the other components; None takes the recipe's pretrained_model_dir. dtype: of the trained
    component; None takes what the release stores. Raises UserError when a tensor is missing, damaged or too many.
    """
    checkpoint = Checkpoint(folder)
    recipe = read_recipe(checkpoint)
    check_apart(folder, target)
    config = recipe.model.model_config
    name = OF_STRUCTURE[type(config)]
    kind = COMPONENTS[name]
    if name == "vae":
        raise UserError(f"{folder}: a VAE's latent statistics are measured when its run ends; take the model/ folder "
                        "that the finished run wrote")
    check_target(pathlib.Path(target), overwrite)
    sources = weights_of(checkpoint, weights)
    rest = _base(folder, base, recipe)
    if rest is not None:
        check_apart(rest.root, target)
    dtype = kind.dtype if dtype in (None, "released") else dtype
    pairs = kind.names.name_map(config)
    streams = _streams(folder, kind, pairs, sources, rest, to, conversion.CODES[dtype])
    text = conversion.config_with_dtype(config_text(kind.config.to_hf(config)), conversion.CODES[dtype])
    total = sum(stream.nbytes for stream in streams.values()) + (rest.total_bytes if rest else 0)
    with progress(total) as on_bytes, FolderWriter(target, total, overwrite, on_bytes) as writer:
        if rest is not None:
            writer.copy_rest(rest, name)
        writer.write_component(name, text, streams, dtype)
        return writer.finish(sealed=to == "mindglm")


def read_recipe(checkpoint: Checkpoint):
    """The recipe of the run that wrote a checkpoint. UserError where PyYAML is not installed."""
    try:
        from mindglm import recipe

        return recipe.loads(checkpoint.recipe_text)
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise UserError("a training checkpoint holds its recipe as YAML: pip install pyyaml to read it") from error


def weights_of(checkpoint: Checkpoint, weights: str = "auto") -> dict[str, Tensors]:
    """{our tensor name: where it is}: the live weights, those of the EMA in their place where it has them."""
    kinds = checkpoint.kinds
    if weights == "ema" and "ema" not in kinds:
        raise UserError(f"{checkpoint.folder}: holds no EMA weights (its recipe has ema.decay 0); ask for live weights")
    chosen = ["model"] if weights == "live" or "ema" not in kinds else ["model", "ema"]
    return {name: kinds[kind] for kind in chosen for name in kinds[kind].names if not name.startswith(TRAINING_ONLY)}


def _base(folder: pathlib.Path, base, recipe) -> ModelFolder | None:
    given = base if base is not None else recipe.pretrained_model_dir
    if given is None:
        return None
    if base is None and not pathlib.Path(given).is_dir():
        raise UserError(f"{folder}: its run began from {given}, which is not here; run this where the run was started, "
                        "or give --base FOLDER with the other components")
    if find(given) is not None:
        raise UserError(f"{folder}: its run began from the checkpoint {given}; export that one first and give --base "
                        "with the folder")
    return scan(given)


def _streams(folder: pathlib.Path, kind: Component, pairs: list[Pair], sources: dict[str, Tensors],
             rest: ModelFolder | None, to: str, code: str) -> dict[str, Stream]:
    """{name in the target: stream} of the whole component, in the order of the name map."""
    before = rest.component(kind.names.COMPONENT) if rest is not None else None
    files = {} if before is None else {n: f for f in before.files.values() for n in f.names}
    found = {name: (stored.dtype(name), stored.shape(name)) for name, stored in sources.items()}
    found.update({pair.ours: (files[pair.theirs].dtype(pair.theirs), files[pair.theirs].shape(pair.theirs))
                  for pair in pairs if pair.ours not in found and pair.theirs in files})
    wanted = {pair.ours: pair.shape for pair in pairs}
    matching.refuse({str(folder): matching.faults(wanted, found)},
                    "A component is whole once all its parts were trained or are in --base.")
    streams = {}
    for pair in pairs:
        if pair.ours in sources:
            stream = _stream(pair, sources[pair.ours], to, code)
        else:
            stream = conversion.converted(pair, files[pair.theirs], "mindglm", code)[1]
        streams[pair.ours if to == "mindglm" else pair.theirs] = stream
    return streams


def _stream(pair: Pair, stored: Tensors, to: str, code: str) -> Stream:
    if to == "hf":
        return conversion.converted(pair, stored, "hf", code)[1]
    return Stream(code, pair.shape, lambda: (cast(piece, code) for piece in stored.pieces(pair.ours)))
