"""From a recipe to the stages that this process holds and the executor that runs them."""

import socket

from mindglm.errors import UserError
from mindglm.objectives.parts import Parts
from mindglm.parallel import transport
from mindglm.parallel.mesh import Mesh
from mindglm.parallel.pipeline import Executor
from mindglm.plan import cuts, schedules
from mindglm.train.batches import members_of
from mindglm.train.layout import Layout


def parts(recipe, layout: Layout, dataset) -> Parts | None:
    """What this process holds of the model; None: the whole of it, run as one network."""
    if not recipe.runs_stages:
        return None
    units = len(_stages_module(recipe.model_type).unit_names(recipe.model.model_config))
    mine = tuple(_ranges(recipe, layout, dataset)[layout.stage::layout.stages])
    return Parts(mine, _recomputed(recipe.recompute_config, units))


def table(recipe, layout: Layout, dataset) -> str:
    """Who runs where and holds what, for people; one line a process. Called by all processes."""
    contents = []
    if recipe.runs_stages:
        names = _stages_module(recipe.model_type).unit_names(recipe.model.model_config)
        ranges = _ranges(recipe, layout, dataset)
        held = [names[start] if stop - start == 1 else f"{names[start]} to {names[stop - 1]}" for start, stop in ranges]
        contents = ["; ".join(held[stage::layout.stages]) for stage in range(layout.stages)]
    return Mesh(layout.data_parallel, layout.stages).table(transport.gather_objects(socket.gethostname()), contents)


def _ranges(recipe, layout: Layout, dataset) -> tuple[tuple[int, int], ...]:
    """The units of every stage, in the order of the model.

    Balanced by the forward FLOPs of the dataset's first sample (of each size, weighed by how many have it), or cut by
    parallel_config.pipeline_cuts.
    """
    section, config = recipe.parallel_config, recipe.model.model_config
    stages = _stages_module(recipe.model_type)
    count = layout.stages * section.pipeline_chunks
    if section.pipeline_cuts:
        return cuts.explicit(section.pipeline_cuts, len(stages.unit_names(config)), count)
    of_sizes = [[len(own) * flops for flops in stages.unit_flops(config, *_lengths(recipe, dataset[int(own[0])]))]
                for own in members_of(dataset)]
    return cuts.balanced([sum(flops) for flops in zip(*of_sizes)], count)


def executor(recipe, objective, layout: Layout) -> Executor:
    """The executor of an objective that was built with `parts`."""
    section = recipe.parallel_config
    table = schedules.build(section.pipeline_schedule, layout.stages, recipe.micro_batches, section.pipeline_chunks)
    ranks = Mesh(layout.data_parallel, layout.stages).pipeline_ranks(transport.rank())
    return Executor(objective.model.stages, table, ranks, objective.stage_inputs, objective.stage_loss)


def _stages_module(model_type: str):
    if model_type == "ArGenerator":
        from mindglm.models.ar_generator import stages
    else:
        assert model_type == "DiTDecoder", model_type
        from mindglm.models.dit_decoder import stages
    return stages


def _lengths(recipe, sample: dict) -> tuple[int, ...]:
    """The sizes that the FLOPs of a unit depend on."""
    if recipe.model_type == "ArGenerator":
        preview = sample["preview_codes"].size if recipe.objective.progressive else 0
        return (len(sample["prompt_ids"]) + preview + sample["large_codes"].size,)
    _, height, width = sample["latents"].shape
    return height * width // recipe.model.model_config.patch_size**2, len(sample["glyph"])


def _recomputed(section, units: int) -> frozenset[int]:
    """Numbers of the units to recompute: layers are all units but the first and the last."""
    layers = units - 2
    chosen = range(layers) if section.recompute else section.select_recompute
    beyond = [layer for layer in chosen if layer >= layers]
    if beyond:
        raise UserError(f"recompute_config.select_recompute names the layers {beyond}, but the model has {layers}, "
                        f"0 to {layers - 1}")
    return frozenset(layer + 1 for layer in chosen)
