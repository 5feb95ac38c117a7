"""Plans of the shipped recipes: sums that must hold, effects of changes, and the search against trying everything."""

import dataclasses
import itertools
import math
import time
from pathlib import Path

import pytest

from mindglm import recipe
from mindglm.errors import UserError
from mindglm.models import workload as workloads
from mindglm.plan import hardware, layout, memory, planner, search, simulation, steptime, text, verifier
from mindglm.plan import schedules as tables

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
A2 = hardware.ATLAS_A2
FILES = {"ar": "glm_image/ar_9b_sft.yaml", "dit": "glm_image/dit_7b_sft.yaml"}
ONE_SIZE = [(1024, 1024, 1.0)]


def made(model="dit", sizes=ONE_SIZE, overrides=(), **changes):
    """(workload, layout) of a full-size recipe, with another layout where `changes` say so."""
    loaded = recipe.load(RECIPES / FILES[model], ["runner_config.global_batch_size=256", *overrides])
    stated = layout.Layout(4, 8, "1f1b", 1, 16, frozenset(), True)
    return workloads.of_recipe(loaded, "fused", sizes), dataclasses.replace(stated, **changes)


def plan_of(model="dit", sizes=ONE_SIZE, overrides=(), **changes):
    return planner.plan(*made(model, sizes, overrides, **changes), A2)


LAYOUTS = [dict(data_parallel=dp, stages=p, chunks=v, micro_batches=m, schedule="interleaved" if v > 1 else "1f1b",
                recompute=again, optimizer_shard=shard)
           for (dp, p, v, m), again, shard in itertools.product(
               [(32, 1, 1, 8), (16, 2, 1, 4), (4, 8, 1, 32), (4, 8, 2, 16), (2, 16, 1, 128)],
               (frozenset(), frozenset({0, 3}), None), (False, True))]


@pytest.mark.parametrize("model, changes", list(itertools.product(FILES, LAYOUTS[::4])), ids=str)
def test_terms_sum_to_the_step_and_every_unit_is_somewhere(model, changes):
    plan = plan_of(model, **changes)
    assert sum(plan.time.terms().values()) == pytest.approx(plan.time.total)
    assert all(value >= 0 for value in dataclasses.asdict(plan.time).values())
    assert [unit for start, stop in plan.ranges for unit in range(start, stop)] == list(range(len(plan.workload.units)))
    assert sum(rank.parameters for rank in plan.memory) == 2 * plan.workload.parameters
    assert all(rank.peak >= rank.parameters + rank.optimizer + rank.reserved for rank in plan.memory)
    assert plan.mfu < A2.matmul_efficiency and plan.executed_flops > plan.model_flops


def test_parameters_are_the_released_ones():
    """Reference section 1: language model with head 8,914,788,352; transformer 6,926,882,880."""
    assert (made("ar")[0].parameters, made("dit")[0].parameters) == (8_914_788_352, 6_926_882_880)


@pytest.mark.parametrize("model", FILES)
def test_the_shares_of_zero(model):
    whole, shared = plan_of(model, optimizer_shard=False), plan_of(model, optimizer_shard=True)
    for before, after in zip(whole.memory, shared.memory):
        assert after.optimizer == pytest.approx(before.optimizer / 4, rel=1e-6)
        assert (after.parameters, after.gradients, after.activations) == (
            before.parameters, before.gradients, before.activations)


def test_recomputation_buys_memory_with_time():
    before, after = plan_of(), plan_of(recompute=None)
    assert after.time.compute == pytest.approx(before.time.compute + after.time.recompute)
    assert 1.25 < after.time.compute / before.time.compute < 1.4
    assert all(b.activations < a.activations / 5 for a, b in zip(before.memory, after.memory))
    assert after.executed_flops > before.executed_flops and after.model_flops == before.model_flops


def test_flights_are_those_of_the_verified_table():
    """The most forwards kept at a time, by place, for every schedule; whatever the number of micro-batches."""
    for kind, p, m, v in [("gpipe", 3, 5, 1), ("1f1b", 4, 9, 1), ("1f1b", 4, 2, 1), ("zb_h1", 3, 7, 1),
                          *(("interleaved", p, m, v) for p, m, v in itertools.product((2, 3, 4), (3, 8, 40), (2, 3)))]:
        proof = verifier.verify(tables.build(kind, p, m, v))
        found = tuple(max(sum(moment) for moment in memory.flights(kind, p, m, v, place)) for place in range(p))
        if kind == "zb_h1":
            assert all(a <= b for a, b in zip(proof.in_flight, found))
        else:
            assert found == proof.in_flight, (kind, p, m, v)


def test_the_bubble_is_that_of_the_simulated_table():
    """Equal stages: by the closed form; the plan's own, uneven stages: by playing the table that the executor runs."""
    workload, stated = made("dit", micro_batches=32, stages=4, data_parallel=8)
    plan = planner.plan(workload, stated, A2)
    costs, *_ = steptime.stage_seconds(workload, workload.samples[0], stated, plan.ranges, A2)
    table = simulation.of_table(tables.build(stated.schedule, stated.stages, stated.micro_batches, stated.chunks))
    step = simulation.play_orders(table, stated.chunks, costs)
    assert plan.bubble == pytest.approx(step.bubble, abs=1e-9)
    assert plan.time.compute + plan.time.bubble == pytest.approx(step.seconds)
    assert 0 < plan.bubble - simulation.bubble("1f1b", 4, 32) < 0.15


def test_memory_is_that_of_the_largest_size_and_time_the_mean():
    small, large = (plan_of(sizes=[(side, side, 1.0)]) for side in (512, 1024))
    mixed = plan_of(sizes=[(512, 512, 0.75), (1024, 1024, 0.25)])
    assert [rank.peak for rank in mixed.memory] == [rank.peak for rank in large.memory]
    assert mixed.time.total == pytest.approx(0.75 * small.time.total + 0.25 * large.time.total, rel=0.02)


def test_communicators():
    assert [memory.communicators(made(data_parallel=dp, stages=p, micro_batches=1)[1]) for dp, p in
            ((1, 1), (8, 1), (1, 8), (4, 8))] == [0, 1, 1, 3]
    assert plan_of().memory[0].communication == 3 * 2 * 200 * 2**20


def test_collectives_by_hand():
    """1 GB over 8 ranks of a node, over 8 nodes, and over 4 nodes with 2 ranks each."""
    rate = dataclasses.replace(A2, link_efficiency=1.0, node_latency=1e-30, network_latency=1e-30)

    def seconds(copies, stages, both):
        return steptime.collective_seconds(1e9, layout.Layout(copies, stages, "1f1b", 1, 1), rate, both)

    assert seconds(8, 1, False) == pytest.approx(7 / 8 / 196)
    assert seconds(8, 8, True) == pytest.approx(2 * 7 / 8 / 25)
    assert seconds(8, 4, False) == pytest.approx(1 / 2 / 196 + 1 / 2 * 3 / 4 / 25)


def of_file(name, overrides=(), machine="atlas800t-a2"):
    """The plan of a shipped recipe."""
    loaded, device = recipe.load(RECIPES / name, overrides, to_plan=True), hardware.load(machine)
    return planner.plan(workloads.of_recipe(loaded, device.form), layout.of_recipe(loaded), device)


KNOBS = [("glm_image/ar_9b_sft.yaml", [], "atlas800t-a2"), ("glm_image/dit_7b_pretrain_mixed.yaml", [], "atlas800t-a2"),
         ("glm_image/128_nodes/dit_7b_pretrain_mixed.yaml", [], "h100"),
         ("glm_image/1_node/dit_7b_sft.yaml", [], "h100"), ("glm_image/1_node/ar_9b_sft.yaml", [], "h100"),
         ("glm_image/1_node/ar_9b_sft.yaml", [], "cpu"),
         ("glm_image/1_node/dit_7b_sft.yaml", ["runner_config.gradient_accumulation_steps=2",
                                               "parallel_config.micro_batch_num=2"], "atlas800t-a2"),
         ("nano/dit.yaml", [], "cpu"), ("nano/dit.yaml", ["parallel_config.data_parallel=2"], "cpu"),
         ("nano/dit.yaml", ["parallel_config.data_parallel=2", "strict_numerics=true", "context.mode=1"], "cpu")]


@pytest.mark.parametrize("name, overrides, machine", KNOBS, ids=str)
def test_knobs_do_what_they_say(name, overrides, machine):
    """Their keys behind the recipe: no rule refuses them, and time and memory are those that were promised."""
    before = of_file(name, overrides, machine)
    found = planner.knobs(before)
    assert found and (not before.fits or all(knob.plan.fits for knob in found))
    for knob in found:
        after = of_file(name, [*overrides, *knob.keys.split()], machine)
        assert after.layout == knob.plan.layout
        assert after.time.total == pytest.approx(knob.plan.time.total, rel=0.03), knob.keys
        assert after.peak == knob.plan.peak, knob.keys


def test_knobs_are_in_order():
    before = plan_of("ar", stages=8, data_parallel=4, micro_batches=32)
    found = planner.knobs(before)
    assert before.fits and found and all(knob.plan.fits for knob in found)
    assert [knob.plan.time.total for knob in found] == sorted(knob.plan.time.total for knob in found)


def test_stages_of_a_compiled_recipe_take_dynamic_graphs():
    """nano/dit.yaml compiles its step; recomputing it takes context.mode=1, which rounds otherwise."""
    before = of_file("nano/dit.yaml", machine="cpu")
    small = planner.plan(before.workload, before.layout, dataclasses.replace(before.hardware, memory=before.peak - 1))
    again = next(knob for knob in planner.knobs(small) if knob.plan.layout.recompute is None)
    assert "context.mode=1" in again.keys.split() and again.changes_numerics
    assert search.keys(again.plan).endswith("context.mode=1") and "context.mode" not in search.keys(before)


def test_a_frozen_model_is_offered_no_stages():
    workload, stated = made("dit", stages=1, data_parallel=32, micro_batches=8)
    frozen = dataclasses.replace(workload, frozen=True)
    for each, staged in ((workload, True), (frozen, False)):
        found = planner.knobs(planner.plan(each, stated, A2))
        assert any(knob.plan.layout.runs_stages for knob in found) is staged
        assert any(candidate.runs_stages for candidate in search.candidates(each, 32)) is staged


def test_strict_numerics_are_offered_no_shorter_gradients():
    workload, stated = made("dit", stages=1, data_parallel=32, micro_batches=8, recompute=None)
    for strict in (False, True):
        found = planner.knobs(planner.plan(dataclasses.replace(workload, strict=strict), stated, A2))
        assert any(knob.keys == "precision.reduce_dtype=bfloat16" for knob in found) is not strict


def test_what_the_trainer_refuses_says_so():
    before = plan_of("ar", schedule="zb_h1", micro_batches=8)
    found, told = planner.knobs(before), text.told(before, "it")
    assert [knob.planned_only for knob in found] == [knob.plan.layout.schedule == "zb_h1" for knob in found]
    shown = sum(knob.planned_only for knob in found[:3])
    assert shown and told.count("planned only: mindglm train does not run zb_h1") == shown


def test_what_would_not_fit_is_not_offered():
    before = plan_of("ar", stages=8, data_parallel=4, micro_batches=8, recompute=None)
    without = plan_of("ar", stages=8, data_parallel=4, micro_batches=8)
    assert before.fits and not without.fits and without.time.total < before.time.total
    assert all(knob.plan.fits for knob in planner.knobs(before))


def test_where_nothing_fits_the_knobs_make_it_smaller():
    before = plan_of("ar", stages=8, data_parallel=4, micro_batches=16, optimizer_shard=False)
    assert not before.fits
    found = planner.knobs(before)
    assert found[0].plan.fits and all(knob.plan.peak < before.peak for knob in found)
    hopeless = plan_of("ar", stages=2, data_parallel=16, micro_batches=1, optimizer_shard=False)
    found = planner.knobs(hopeless)
    assert not found[0].plan.fits and "look for a layout by --search" in text.told(hopeless, "it")


def test_devices_that_a_layout_cannot_fill():
    workload, stated = made()
    assert layout.on_devices(stated, workload, 64).data_parallel == 8
    with pytest.raises(UserError, match="pipelines of 8 stages; expected a multiple of 8"):
        layout.on_devices(stated, workload, 12)
    with pytest.raises(UserError, match="at most 256 of them, or another runner_config.global_batch_size"):
        layout.on_devices(stated, workload, 8 * 384)
    with pytest.raises(UserError, match="does not divide"):
        planner.plan(workload, dataclasses.replace(stated, micro_batches=7), A2)


@pytest.mark.parametrize("model, devices", [("ar", 16), ("dit", 32)])
def test_the_search_finds_what_trying_everything_finds(model, devices):
    workload, _ = made(model)
    found = search.best(workload, A2, devices, count=1)
    everything = [planner.plan(workload, each, A2, quick=True) for each in search.candidates(workload, devices)]
    assert found.tried == len(everything) and found.too_large == sum(not plan.fits for plan in everything)
    best = min((plan for plan in everything if plan.fits), key=lambda plan: plan.time.total)
    assert found.plans[0].time.total == pytest.approx(best.time.total, rel=0.03)
    assert found.played < found.tried / 4


def test_a_search_over_4096_devices_takes_less_than_five_seconds():
    workload, _ = made("ar", sizes=[(side, side, 0.25) for side in (512, 768, 1024, 1536)],
                       overrides=["runner_config.global_batch_size=8192"])
    start = time.process_time()
    found = search.best(workload, A2, 4096)
    assert time.process_time() - start < 5
    assert len(found.plans) == 5 and all(plan.fits and plan.layout.devices == 4096 for plan in found.plans)
    with pytest.raises(UserError, match="up to 4096"):
        search.best(workload, A2, 4097)


@pytest.mark.parametrize("devices", [32, 128])
def test_keys_of_a_layout_make_a_recipe_with_that_layout(devices):
    """From a recipe with chunks and cuts of its own, which a layout of one stage has to take back."""
    workload, _ = made("dit")
    one_stage = [each for each in search.candidates(workload, devices) if each.stages == 1]
    assert one_stage
    for plan in (*search.best(workload, A2, devices).plans,
                 *(planner.plan(workload, each, A2) for each in one_stage)):
        loaded = recipe.load(RECIPES / FILES["dit"], ["runner_config.global_batch_size=256",
                                                      *search.keys(plan).split()])
        assert layout.of_recipe(loaded) == plan.layout


def test_other_objectives_are_not_planned():
    with pytest.raises(UserError, match="vae_reconstruction is not planned"):
        workloads.of_recipe(recipe.load(RECIPES / "nano/vae.yaml"), "composed")


def test_checkpoints_are_counted():
    """12 bytes a parameter, 4 more for an average; written by the nodes whose ranks own a part."""
    plan, shared = plan_of("ar"), plan_of("ar", optimizer_shard=True, data_parallel=16, stages=2, micro_batches=16)
    assert plan.checkpoint_bytes == 12 * plan.workload.parameters
    assert plan_of("dit", overrides=["ema.decay=0.9"]).checkpoint_bytes == 16 * 6_926_882_880
    assert shared.checkpoint_seconds == pytest.approx(shared.checkpoint_bytes / 4 / A2.storage_bandwidth)
    assert math.isclose(plan.run_seconds, plan.workload.steps * plan.time.total + plan.checkpoint_seconds * (
        plan.workload.steps // plan.workload.checkpoint_interval))
