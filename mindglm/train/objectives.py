"""trainer.type -> the objective object, and the component its model belongs to. Imports only what a run needs."""

import pathlib

from mindglm.checkpoint import start
from mindglm.checkpoint.released import read_json


def build(recipe, parts=None):
    """The objective of a recipe, its weights drawn from recipe.seed.

    parts: the stages this process holds of a model that runs as stages (mindglm.train.pipeline); else None.
    """
    kind = recipe.trainer.type
    if kind == "ar_next_token":
        from mindglm.objectives.ar_next_token import ArNextToken

        return ArNextToken(recipe.model.model_config, recipe.objective, recipe.seed, parts)
    elif kind == "flow_matching":
        from mindglm.objectives.flow_matching import FlowMatching

        return FlowMatching(recipe.model.model_config, recipe.objective, recipe.seed,
                            _scheduler(start.base(recipe.pretrained_model_dir)), parts)
    elif kind == "vae_reconstruction":
        from mindglm.objectives.vae_reconstruction import VaeReconstruction as Objective
    elif kind == "vq_reconstruction":
        from mindglm.objectives.vq_reconstruction import VqReconstruction as Objective
    else:
        assert kind == "glyph_alignment", kind
        from mindglm.objectives.glyph_alignment import GlyphAlignment as Objective
    return Objective(recipe.model.model_config, recipe.objective, recipe.seed)


def _scheduler(model_dir):
    """The SchedulerConfig of a model folder: training draws noise as its sampler will; the released one without it."""
    from mindglm.models.dit_decoder.config import scheduler_from_hf
    from mindglm.recipe.models import SchedulerConfig

    path = pathlib.Path(model_dir or "") / "scheduler" / "scheduler_config.json"
    return scheduler_from_hf(read_json(path)) if model_dir and path.is_file() else SchedulerConfig()


def component_modules(model_type: str):
    """(hf_names, config) modules of a model type: its component's name, dtype, tensors, and config.json."""
    if model_type == "ArGenerator":
        from mindglm.models.ar_generator import config, hf_names
    elif model_type == "DiTDecoder":
        from mindglm.models.dit_decoder import config, hf_names
    elif model_type == "VAE":
        from mindglm.models.vae import config, hf_names
    else:
        assert model_type == "GlyphEncoder", model_type
        from mindglm.models.glyph_encoder import config, hf_names
    return hf_names, config
