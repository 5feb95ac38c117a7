"""FLOPs against a count over the operations of a real forward and backward, on CPU and as Ascend would run them.

And of the Ascend form, which cannot run here: the bytes that its backward needs, and how many kernels it launches.
"""

import json
import os
import subprocess
import sys

import pytest

from mindglm.models import workload as workloads
from tests.plan import graph_worker, real

FORMS = ("composed", "fused")


@pytest.fixture(scope="module")
def counted():
    """{form: {model: what graph_worker measures}}."""
    found = {"composed": graph_worker.measure("composed")}
    result = subprocess.run([sys.executable, "-m", "tests.plan.graph_worker", "fused"], cwd=real.ROOT, text=True,
                            capture_output=True, env={**os.environ, "GLOG_v": "4"})
    assert result.returncode == 0, result.stderr
    return {**found, "fused": json.loads(result.stdout.splitlines()[-1])}


def planned(model, form):
    """The units of the same step, one sample."""
    loaded = real.resized(real.nano(model), graph_worker.LAYERS)
    side = graph_worker.PIXELS
    return workloads.of_recipe(loaded, form, [(side, side, 1.0)], graph_worker.TEXT, graph_worker.TEXT).units


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", real.OBJECTIVES)
def test_flops_are_those_of_the_operations(counted, model, form):
    """Forward and backward together within 2 %; of the Ascend form, each product is planned.

    The DiT's forward is planned as it runs operation by operation: a compiled graph leaves out the feed-forward of the
    last block's text, which nothing reads.
    """
    units, found = planned(model, form), counted[form][model]
    forward, backward = (graph_worker.SAMPLES * sum(getattr(unit, half).flops for unit in units)
                         for half in ("forward", "backward"))
    assert (forward + backward) / (found["forward"] + found["backward"]) == pytest.approx(1, abs=0.02)
    if form == "fused":
        width = real.nano("dit").model.model_config.hidden_size
        unread = 2 * graph_worker.SAMPLES * graph_worker.TEXT * 8 * width**2 if model == "dit" else 0
        assert (forward, backward) == (found["forward"] + unread, found["backward"])


@pytest.mark.parametrize("model", real.OBJECTIVES)
def test_bytes_kept_in_the_ascend_form(counted, model):
    """Within 10 % of what the compiled backward reads of the forward: fused attention, norms, rotation and swiglu."""
    kept = graph_worker.SAMPLES * sum(unit.kept for unit in planned(model, "fused"))
    assert kept / counted["fused"][model]["kept"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("model", real.OBJECTIVES)
def test_kernels_launched_in_the_ascend_form(counted, model):
    """Planned are some more than the compiled graph has: copies of heads that dynamic graphs make."""
    units, found = planned(model, "fused"), counted["fused"][model]
    for half, launches in (("forward", found["launches"]), ("backward", found["launches_back"])):
        assert 1 <= sum(getattr(unit, half).launches for unit in units) / launches < 1.25


def test_the_model_needs_half_of_causal_attention():
    """MFU counts what the model needs; the composed form computes all scores and hides half of them."""
    composed, fused = planned("ar", "composed")[1], planned("ar", "fused")[1]
    assert fused.forward.flops == fused.model_flops == composed.model_flops < composed.forward.flops
