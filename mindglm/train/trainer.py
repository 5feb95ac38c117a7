"""Entry of `mindglm train`: device, process group, parts of the run, loop, export."""

import os
import pathlib
import sys

from mindglm.errors import UserError
from mindglm.parallel import transport


def run(recipe) -> None:
    """Train as the recipe says and export `<output_dir>/model/`, a folder in the released layout.

    Raises UserError for whatever the user can mend; SystemExit(143 | 130) when a signal stopped the run.
    """
    try:
        _run(recipe)
    except UserError as error:
        if transport.world() == 1:
            raise
        # A worker that leaves by the normal way waits for its peers first; they wait for it in a collective.
        print(f"mindglm: {error}", file=sys.stderr, flush=True)
        os._exit(2)


def _run(recipe) -> None:
    output = pathlib.Path(recipe.output_dir)
    os.environ.setdefault("LOG_MF_PATH", str(output / "log"))  # mindformers opens its log files when it is imported
    _choose_device(recipe.context.device_target)
    transport.init()
    # From here on modules may ask for the device.
    from mindglm.recipe import to_yaml
    from mindglm.train import export, objectives, pipeline, precision, weights
    from mindglm.train import layout as layouts
    from mindglm.train.loop import Trainer

    precision.check(recipe)
    layout = layouts.here(recipe.parallel_config)
    dataset, held_out = _datasets(recipe)
    objective = objectives.build(recipe, pipeline.parts(recipe, layout, dataset))
    hf_names, _ = objectives.component_modules(recipe.model_type)
    note = weights.load_start(objective, recipe.pretrained_model_dir, recipe.model.fresh, hf_names.COMPONENT,
                              hf_names.tensors(recipe.model.model_config))
    notes = (note,) if layout.world == 1 else (note, f"processes\n{pipeline.table(recipe, layout, dataset)}")
    trainer = Trainer(recipe, to_yaml(recipe), objective, dataset, held_out, notes, layout)
    trainer.fit()
    with trainer.exported_weights():
        tensors = trainer.component_tensors()
        if trainer.leads:
            folder = export.write(recipe, objective, dataset, tensors)
            print(f"mindglm: exported {folder}", file=sys.stderr, flush=True)
    transport.finish()


def _choose_device(target: str) -> None:
    import mindspore as ms

    if target != "auto":
        try:
            ms.set_device(target)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"context.device_target is {target}, but this machine has no such device (MindSpore: "
                            f"{str(error).splitlines()[0]}); set it to auto or CPU") from error


def _datasets(recipe):
    """(training data, held-out data or None)."""
    from mindglm.data.loader import ShardDataset
    from mindglm.train.batches import ProceduralDataset

    folder = recipe.train_dataset.dataset_dir
    if folder is None:
        return ProceduralDataset(), ProceduralDataset()
    on_pixels = recipe.trainer.type in ("vae_reconstruction", "vq_reconstruction")
    dataset = ShardDataset(folder, "train", model_dir=None if on_pixels else recipe.pretrained_model_dir)
    if on_pixels and not dataset.pixels_only:
        raise UserError(f"train_dataset.dataset_dir: {folder} holds codes and latents, but {recipe.trainer.type} "
                        "trains on pixels; prepare it with --pixels-only")
    watches = recipe.validation.eval_step_interval or recipe.monitor_config.sample_step_interval
    return dataset, ShardDataset(folder, "held_out") if watches else None
