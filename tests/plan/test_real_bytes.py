"""Parameters, optimizer state and average, byte for byte those of real Cells and the real optimizer."""

import itertools

import mindspore as ms
import pytest

from mindglm.plan import hardware, memory
from mindglm.train.buckets import FlatSpace
from mindglm.train.ema import Ema
from mindglm.train.layout import Layout as Here
from mindglm.train.optimizer import HostAdamW, MintAdamW
from mindglm.train.optimizer import decays as real_decays
from tests.plan import real

LAYOUTS = [(1, 1, 1, False), (2, 1, 1, True), (3, 2, 1, True), (2, 3, 1, False), (5, 2, 2, True)]
"""(data_parallel, stages, chunks, ZeRO-1)."""


def parameters_of(loaded, layout, workload, place):
    """The trained parameters of one place, built as the trainer builds them."""
    cell = real.objective(loaded, layout.ranges(workload)[place::layout.stages]).network
    return sorted(cell.trainable_params(), key=lambda parameter: parameter.name)


@pytest.mark.parametrize("model, sizes", list(itertools.product(("ar", "dit"), LAYOUTS)), ids=str)
def test_bytes_are_those_of_real_cells(model, sizes):
    copies, stages, chunks, shard = sizes
    loaded = real.nano(model, f"runner_config.global_batch_size={4 * copies}")
    workload, layout = real.planned(loaded, data_parallel=copies, stages=stages, chunks=chunks, optimizer_shard=shard,
                                    schedule="interleaved" if chunks > 1 else "1f1b", micro_batches=4)
    ranges, seen = layout.ranges(workload), 0
    for place in range(stages):
        params = parameters_of(loaded, layout, workload, place)
        plan = memory.of_place(workload, workload.samples[0], layout, ranges, place, hardware.cpu(1e10))
        assert plan.parameters == sum(parameter.nbytes for parameter in params)
        here = Here(copies - 1, copies, place, stages)
        adamw = HostAdamW(params, loaded.optimizer, here, shard)
        assert plan.optimizer == sum(moment.nbytes for moment in adamw.moments())
        assert plan.average == Ema(adamw, 0.9, 0).average.nbytes
        assert plan.gradients == 4 * adamw.size and plan.reduced == 4 * adamw.space.owned_size
        seen = seen + adamw.size
    assert seen == workload.parameters


def test_the_fused_form_has_masters_beside_bfloat16_weights():
    """mint.optim.AdamW, as on Ascend: 2 bytes a weight, 4 a master, 8 of moments."""
    loaded = real.nano("dit")
    workload, layout = real.planned(loaded, data_parallel=2, optimizer_shard=True)
    params = parameters_of(loaded, layout, workload, 0)
    for parameter in params:
        parameter.set_dtype(ms.bfloat16)
    adamw = MintAdamW(params, loaded.optimizer, Here(1, 2), True)
    state = adamw.masters().nbytes + sum(moment.nbytes for moment in adamw.moments())
    from mindglm.models import workload as workloads

    fused = workloads.of_recipe(loaded, "fused", [(128, 128, 1.0)])
    plan = memory.of_place(fused, fused.samples[0], layout, layout.ranges(fused), 0, hardware.ATLAS_A2)
    assert (plan.parameters, plan.optimizer) == (sum(parameter.nbytes for parameter in params), state)


@pytest.mark.parametrize("elements, shards", [(64, 1), (5000, 3), (40000, 7), (2**23, 8)])
def test_buckets_are_those_of_the_trainer(elements, shards):
    loaded = real.nano("ar")
    workload, layout = real.planned(loaded)
    params = parameters_of(loaded, layout, workload, 0)
    flags = {p.name: real_decays(p.name, p.shape, loaded.optimizer.no_decay) for p in params}
    ordered = [p for p in params if flags[p.name]] + [p for p in params if not flags[p.name]]
    space = FlatSpace(ordered, [flags[p.name] for p in ordered], Here(0, shards), True, elements)
    tensors = [tensor for unit in workload.units for tensor in unit.tensors]
    sizes = memory.buckets(tensors, workload.no_decay, elements)
    assert sizes == [bucket.size for bucket in space.buckets]
    assert memory.owned(sizes, shards) == space.owned_size
