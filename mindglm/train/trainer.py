"""Entry of `mindglm train`: device, process group, parts of the run, loop, export."""

import contextlib
import os
import pathlib
import sys

from mindglm.errors import UserError
from mindglm.parallel import transport
from mindglm.train import lock, writable


def run(recipe, fallback: bool = False) -> None:
    """Train as the recipe says and export `<output_dir>/model/`, a folder in the released layout.

    fallback: a damaged checkpoint is set aside and the one before it resumed.

    Raises UserError for whatever the user can mend; SystemExit(143 | 130) when a signal stopped the run.
    """
    try:
        _run(recipe, fallback)
    except UserError as error:
        if transport.world() == 1:
            raise
        # A worker that leaves by the normal way waits for its peers first; they wait for it in a collective.
        print(f"mindglm: rank {transport.rank()} stops: {error}", file=sys.stderr, flush=True)
        os._exit(2)


def _run(recipe, fallback: bool) -> None:
    output = pathlib.Path(recipe.output_dir)
    os.environ.setdefault("LOG_MF_PATH", str(output / "log"))  # mindformers opens its log files when it is imported
    _choose_device(recipe.context.device_target)
    transport.init()
    with _alone(output) as note:
        _train(recipe, note, fallback)
    transport.finish()


@contextlib.contextmanager
def _alone(output: pathlib.Path):
    """This job alone writes to its folder: rank 0 holds the lock (mindglm.train.lock); all ranks are refused together.

    The value is a sentence on a lock that a dead run left behind, or "".
    """
    with contextlib.ExitStack() as stack:
        note = ""
        with writable.together(output):
            if transport.rank() == 0:
                note = stack.enter_context(lock.held(output))
        yield note


def _check_start(recipe) -> None:
    """UserError when the run would begin from its own checkpoints, which lead to no other components at its end."""
    start, own = recipe.pretrained_model_dir, pathlib.Path(recipe.output_dir).resolve()
    given = None if start is None else pathlib.Path(start).resolve()
    if given is not None and (given == own or own / "checkpoint" in (given, *given.parents)):
        raise UserError(f"pretrained_model_dir: {start} is this run itself (output_dir {recipe.output_dir}); leave it "
                        "as it was, to resume, or give another output_dir, to begin from its weights")


def _train(recipe, found: str, fallback: bool) -> None:
    """found: what was found in the output folder, "" for nothing to tell."""
    # From here on modules may ask for the device.
    from mindglm.recipe import to_yaml
    from mindglm.train import export, objectives, pipeline, precision, state, weights
    from mindglm.train import layout as layouts
    from mindglm.train.loop import Trainer

    precision.check(recipe)
    _check_start(recipe)
    checkpoints = pathlib.Path(recipe.output_dir) / "checkpoint"
    resumes = recipe.resume_training and state.resumes(checkpoints, to_yaml(recipe))
    layout = layouts.here(recipe.parallel_config)
    dataset, held_out = datasets(recipe)
    objective = objectives.build(recipe, pipeline.parts(recipe, layout, dataset))
    hf_names, _ = objectives.component_modules(recipe.model_type)
    note = "" if resumes else weights.load_start(  # all parameters come from the checkpoint then
        objective, recipe.pretrained_model_dir, recipe.model.fresh, hf_names.COMPONENT,
        hf_names.tensors(recipe.model.model_config), hf_names.ALIASES)
    table = f"processes\n{pipeline.table(recipe, layout, dataset)}" if layout.world > 1 else ""
    notes = (*filter(None, (found, note, table)), *_sizes_note(recipe, dataset, held_out))
    trainer = Trainer(recipe, to_yaml(recipe), objective, dataset, held_out, notes, layout, fallback)
    trainer.fit()
    with trainer.exported_weights():
        tensors = trainer.component_tensors()
        if trainer.leads:
            folder = export.write(recipe, objective, dataset, tensors)
            print(f"mindglm: exported {folder}", file=sys.stderr, flush=True)


def _choose_device(target: str) -> None:
    import mindspore as ms

    if target != "auto":
        try:
            ms.set_device(target)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"context.device_target is {target}, but this machine has no such device (MindSpore: "
                            f"{str(error).splitlines()[0]}); set it to auto or CPU") from error


def _sizes_note(recipe, dataset, held_out) -> list[str]:
    """What sizes are trained on and what a validation takes of them, where there are several."""
    from mindglm.recipe import sizes
    from mindglm.train.batches import members_of, validation_mix

    if len(members_of(dataset)) == 1:
        return []
    note = f"sizes, width x height (samples): {dataset.describe()}"
    batch = recipe.runner_config.global_batch_size
    few = [sizes.name(size) for size, own in zip(dataset.sizes, dataset.members) if len(own) < batch]
    if few:
        note = f"{note}; a global batch of {batch} holds samples of {', '.join(few)} more than once"
    if held_out is not None and recipe.validation.eval_step_interval:
        mix = validation_mix(held_out, recipe.validation.eval_samples)
        note = f"{note}; of a validation: {held_out.describe(mix)}"
    return [note]


def datasets(recipe):
    """(training data, held-out data or None). UserError when they are not there, or are of another kind."""
    from mindglm.checkpoint import start
    from mindglm.data.loader import ShardDataset
    from mindglm.train.batches import ProceduralDataset

    folder = recipe.train_dataset.dataset_dir
    if folder is None:
        return ProceduralDataset(), ProceduralDataset()
    on_pixels = recipe.trainer.type in ("vae_reconstruction", "vq_reconstruction")
    sizes = recipe.train_dataset.sizes
    dataset = ShardDataset(folder, "train", None if on_pixels else start.base(recipe.pretrained_model_dir), sizes)
    if on_pixels and not dataset.pixels_only:
        raise UserError(f"train_dataset.dataset_dir: {folder} holds codes and latents, but {recipe.trainer.type} "
                        "trains on pixels; prepare it with --pixels-only")
    watches = recipe.validation.eval_step_interval or recipe.monitor_config.sample_step_interval
    return dataset, ShardDataset(folder, "held_out", only=sizes) if watches else None
