"""Stages hold each released tensor exactly once, start as the whole model does, and their costs sum to its own."""

import pytest
from mindspore import Tensor

from mindglm import ops
from mindglm.checkpoint.released import component_config
from mindglm.models.ar_generator import config as ar_config
from mindglm.models.ar_generator import flops as ar_flops
from mindglm.models.ar_generator import stages as ar_stages
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.dit_decoder import config as dit_config
from mindglm.models.dit_decoder import flops as dit_flops
from mindglm.models.dit_decoder import stages as dit_stages
from mindglm.models.dit_decoder.model import DiTDecoder
from mindglm.parallel.pipeline import Executor
from mindglm.plan import schedules
from tests.golden import REPO, fixture, load, rel_error

AR = ar_config.from_hf(component_config(REPO, "vision_language_encoder"))
DIT = dit_config.from_hf(component_config(REPO, "transformer"))


@pytest.mark.parametrize("module, whole, config", [(ar_stages, ArGenerator, AR), (dit_stages, DiTDecoder, DIT)])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_each_parameter_lies_on_one_stage_with_its_own_start(module, whole, config, step):
    model, units = whole(config), len(module.unit_names(config))
    ops.init_parameters(model, 4)
    expected = {parameter.name: parameter for parameter in model.get_parameters()}
    found = {}
    for start in range(0, units, step):
        stage = module.Stage(config, start, min(start + step, units))
        ops.init_parameters(stage, 4)
        assert stage.first == (start == 0) and stage.last == (start + step >= units)
        for parameter in stage.get_parameters():
            assert parameter.name not in found, parameter.name
            found[parameter.name] = parameter
    assert set(found) == set(expected)
    for name, parameter in expected.items():
        assert (found[name].asnumpy() == parameter.asnumpy()).all(), name


def test_unit_costs_sum_to_the_model():
    assert sum(ar_stages.unit_flops(AR, 40)) == ar_flops.forward_flops(AR, 1, 40)
    assert sum(dit_stages.unit_flops(DIT, 24, 5)) == dit_flops.forward_flops(DIT, 24, 5)
    assert len(ar_stages.unit_flops(AR, 40)) == len(ar_stages.unit_names(AR))
    assert len(dit_stages.unit_flops(DIT, 24, 5)) == len(dit_stages.unit_names(DIT))


def outputs(stages, inputs):
    """What the last of the stages gives, with the shapes that the next stage expects checked on the way."""
    carried = ()
    for stage in stages:
        assert tuple((x.shape, x.dtype) for x in carried) == stage.received(inputs)
        carried = stage(carried, inputs)
    return carried[0]


def test_the_ar_stages_give_the_reference_logits_of_a_left_padded_batch():
    data = fixture("ar_batch")
    ids, mask = data["in.input_ids"].astype("int32"), data["in.attention_mask"].astype(bool)
    positions = data["prefill.position_ids"].astype("int32")
    stages = [load(ar_stages.Stage(AR, i, i + 1), "vision_language_encoder") for i in range(4)]
    model = load(ArGenerator(AR), "vision_language_encoder")
    whole = model(Tensor(ids), Tensor(positions), Tensor(mask))
    cut = outputs(stages, ar_stages.Inputs(ids, positions, mask))
    assert rel_error(cut.asnumpy()[mask], whole.asnumpy()[mask]) == 0


def test_an_executor_is_given_the_stages_of_its_place():
    stage = ar_stages.Stage(AR, 0, 2)
    with pytest.raises(AssertionError, match="do not belong to this rank"):
        Executor([stage], schedules.build("1f1b", 1, 1), [0], None, None)
