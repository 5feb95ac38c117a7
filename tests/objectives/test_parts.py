"""An objective that holds a part of its model: parameters, their start and the export are those of the part."""

import pytest

from mindglm.checkpoint.released import component_config
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.dit_decoder import config as dit_config
from mindglm.objectives.ar_next_token import ArNextToken
from mindglm.objectives.flow_matching import FlowMatching
from mindglm.objectives.parts import Parts
from mindglm.recipe.schema import ArNextTokenOptions, FlowMatchingOptions
from tests.golden import REPO

MODELS = {
    "ar": (ArNextToken, ar_config.from_hf(component_config(REPO, "vision_language_encoder")), ArNextTokenOptions()),
    "dit": (FlowMatching, dit_config.from_hf(component_config(REPO, "transformer")), FlowMatchingOptions()),
}


@pytest.mark.parametrize("name", MODELS)
def test_parts_make_up_the_whole(name):
    objective, config, options = MODELS[name]
    whole = objective(config, options, 7).component_tensors()
    joined = {}
    for ranges in (((0, 1), (2, 3)), ((1, 2), (3, 4))):
        part = objective(config, options, 7, parts=Parts(ranges))
        assert [(stage.first, stage.last) for stage in part.model.stages] == [(a == 0, b == 4) for a, b in ranges]
        tensors = part.component_tensors()
        assert set(tensors) == {parameter.name for parameter in part.network.trainable_params()}
        assert not set(tensors) & set(joined)
        joined.update(tensors)
    assert set(joined) == set(whole)
    for tensor_name, tensor in whole.items():
        assert (joined[tensor_name].asnumpy() == tensor.asnumpy()).all(), tensor_name


def test_recomputed_units_are_counted_in_the_whole_model():
    objective, config, options = MODELS["dit"]
    part = objective(config, options, 7, parts=Parts(((0, 2), (2, 4)), frozenset([2])))
    assert [sorted(stage.recomputed) for stage in part.model.stages] == [[], [1]]
