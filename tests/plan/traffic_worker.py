"""One of four ranks of tests/plan/test_traffic.py: steps in several layouts, and what the transport was given."""

import json
import sys

import numpy as np

from mindglm.parallel import transport

CASES = {
    "ar 2x2 ZeRO-1": ("ar", 2, 2, "1f1b", 1, 4, True),
    "ar 2x2": ("ar", 2, 2, "1f1b", 1, 2, False),
    "dit 1x4": ("dit", 1, 4, "gpipe", 1, 2, False),
    "dit 2x2 chunks ZeRO-1": ("dit", 2, 2, "interleaved", 2, 2, True),
    "dit 4x1 ZeRO-1": ("dit", 4, 1, "1f1b", 1, 1, True),
}
"""name -> (model, data_parallel, pipeline_stage, schedule, chunks, micro-batches, ZeRO-1)."""
PIXELS, TEXT, MICRO_BATCH = 128, 16, 2


def recipe_of(model, copies, stages, schedule, chunks, micro_batches, shard):
    from tests.plan import real

    accumulation = "parallel_config.micro_batch_num" if stages > 1 else "runner_config.gradient_accumulation_steps"
    return real.nano(
        model, f"parallel_config.data_parallel={copies}", f"parallel_config.pipeline_stage={stages}",
        f"parallel_config.pipeline_schedule={schedule}", f"parallel_config.pipeline_chunks={chunks}",
        f"parallel_config.optimizer_shard={str(shard).lower()}", f"{accumulation}={micro_batches}",
        f"runner_config.global_batch_size={MICRO_BATCH * copies * micro_batches}", "ema.decay=0")


def count_traffic() -> dict[str, int]:
    """Bytes by kind, from now on: what is handed to the point-to-point layer and to the collectives."""
    from mindglm.parallel import transport_peers

    counted = {"sent": 0, "gradients": 0, "weights": 0, "agreed": 0}
    isend, inside = transport_peers.distributed.isend, []

    def sent(tensor, *rest):
        counted["sent"] = counted["sent"] + tensor.nbytes
        return isend(tensor, *rest)

    def noted(function, kind):
        def call(tensor, group=None, tag="bucket"):
            what = "agreed" if tag == "loss and norm" else kind
            if not inside:  # on CPU one collective is made of another
                counted[what] = counted[what] + tensor.nbytes
            inside.append(tag)
            try:
                return function(tensor, group, tag)
            finally:
                inside.pop()
        return call

    transport_peers.distributed.isend = sent
    for name, kind in (("all_reduce_sum", "gradients"), ("begin_all_reduce_sum", "gradients"),
                       ("begin_reduce_scatter_sum", "gradients"), ("all_gather", "weights")):
        setattr(transport, name, noted(getattr(transport, name), kind))
    return counted


def step_of(case):
    """One step of a case, without mindformers' schedule (4 s)."""
    from mindglm.train import layout as layouts
    from mindglm.train.optimizer import build
    from mindglm.train.step import build_step
    from tests.plan import real

    loaded = recipe_of(*case)
    here = layouts.here(loaded.parallel_config)
    workload, layout = real.planned(loaded, PIXELS, TEXT)
    if loaded.runs_stages:
        made = real.objective(loaded, layout.ranges(workload)[here.stage::here.stages])
    else:
        made = real.OBJECTIVES[case[0]](loaded.model.model_config, loaded.objective, real.SEED)
    params = sorted(made.network.trainable_params(), key=lambda parameter: parameter.name)
    optimizer = build(params, loaded.optimizer, here, loaded.parallel_config.optimizer_shard)
    arrays = real.batch(loaded, MICRO_BATCH, PIXELS, TEXT)
    return build_step(loaded, made, optimizer)([arrays] * loaded.micro_batches, 1e-3, 1)


if __name__ == "__main__":
    transport.init()
    from mindglm import ops  # noqa: F401  (CPU launch mode)

    found, totals = {}, count_traffic()
    for name, case in CASES.items():
        before = dict(totals)
        result = step_of(case)
        assert np.isfinite(result.loss)
        found[name] = {kind: totals[kind] - before[kind] for kind in totals}
        transport.barrier()
    with open(f"{sys.argv[1]}/rank_{transport.rank()}.json", "w", encoding="utf-8") as file:
        json.dump(found, file)
    transport.finish()
