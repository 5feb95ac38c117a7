"""One optimizer step: accumulation, clipping, normalisation, compiled against direct, the learning rate table."""

import math

import numpy as np
import pytest

from mindglm.ledger import Digest
from mindglm.recipe import schema
from mindglm.train.batches import Batches, collate
from mindglm.train.layout import Layout
from mindglm.train.optimizer import build
from mindglm.train.step import learning_rates, local_step
from tests.train import fake
from tests.train.test_trainer import killed_after

WIDE = schema.RunnerWrapperSection(use_clip_grad=False)


def one_step(batches, wrapper=WIDE, compiled=False, lr=0.1, strict=False):
    """(StepResult, change of the flat weights) of one step on fresh weights."""
    objective = fake.Objective()
    optimizer = build(objective.network.trainable_params(), schema.OptimizerSection(weight_decay=0.0))
    before = optimizer.masters().copy()
    exact = len(batches) if strict else 0
    result = local_step(objective.network, optimizer, wrapper, compiled, exact_micro_batches=exact)(batches, lr, 1)
    return result, optimizer.masters() - before, optimizer


def batch_of(ids):
    return collate(fake.Objective(), fake.Dataset(), ids, ids, 0, 0, training=True)


def moments(optimizer):
    return np.concatenate([view.ravel() for view in optimizer.named(optimizer.moments()[0]).values()])


def test_micro_batches_sum_to_the_whole_batch():
    """Unequal weights and unequal sizes: loss and gradient are those of the whole batch."""
    whole, _, first = one_step([batch_of(range(8))])
    parts, _, second = one_step([batch_of([0, 1, 2]), batch_of([3]), batch_of([4, 5, 6, 7])])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
    np.testing.assert_allclose(moments(second), moments(first), atol=1e-7)


def test_compiled_step_equals_the_direct_one():
    direct, change, _ = one_step([batch_of(range(8))])
    compiled, changed, _ = one_step([batch_of(range(8))], compiled=True)
    assert compiled.loss == pytest.approx(direct.loss, rel=1e-6)
    np.testing.assert_allclose(changed, change, atol=1e-6)


def test_gradient_is_that_of_the_weighted_mean_and_is_clipped_by_its_norm():
    free, _, optimizer = one_step([batch_of(range(8))])
    gradient = moments(optimizer) / (1 - 0.9)
    assert free.grad_norm == pytest.approx(math.sqrt((gradient**2).sum()), rel=1e-5)
    x, y, w = batch_of(range(8))
    output = fake.Objective().model(fake.tensors(x)[0]).asnumpy()
    assert free.loss == pytest.approx(float(((output - y) ** 2 * w).sum() / w.sum()), rel=1e-5)
    limit = free.grad_norm / 3
    clipped, _, optimizer = one_step([batch_of(range(8))], schema.RunnerWrapperSection(max_grad_norm=limit))
    assert clipped.grad_norm == pytest.approx(free.grad_norm, rel=1e-6)
    np.testing.assert_allclose(moments(optimizer) / (1 - 0.9), gradient / 3, rtol=1e-4, atol=1e-6)
    loose, _, optimizer = one_step([batch_of(range(8))], schema.RunnerWrapperSection(max_grad_norm=free.grad_norm * 2))
    np.testing.assert_allclose(moments(optimizer) / (1 - 0.9), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_step_that_is_not_finite_changes_nothing(bad):
    x, y, w = batch_of(range(8))
    y[3] = bad
    result, change, optimizer = one_step([(x, y, w)])
    assert not result.applied and not change.any() and not moments(optimizer).any()


def test_batch_without_weight_is_skipped():
    x, y, w = batch_of(range(8))
    result, change, _ = one_step([(x, y, 0 * w)])
    assert not result.applied and not change.any() and math.isnan(result.loss)


def test_learning_rates_are_those_of_mindformers_one_step_on(tmp_path):
    settings = fake.make_recipe(tmp_path, steps=20, lr_schedule=schema.LrScheduleSection(
        learning_rate=0.5, warmup_steps=5, lr_end=0.1, total_steps=15))
    rate = learning_rates(settings)
    rates = [rate(done) for done in range(20)]
    expected = [0.5 * i / 5 for i in range(1, 5)]
    expected += [0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi * (i - 5) / 10)) for i in range(5, 15)] + [0.1] * 6
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_a_learning_rate_is_computed_when_its_step_comes(tmp_path):
    """A run of ten million steps builds its trainer as fast as a short one: the schedule is asked once a step."""
    trainer = fake.make_trainer(fake.make_recipe(tmp_path, steps=10**7))
    asked, rate = [], trainer._rate
    trainer._rate = lambda done: asked.append(done) or rate(done)
    killed_after(trainer, 3)
    assert asked == [0, 1, 2] and rate(9_999_999) == pytest.approx(0.002)


def test_batches_are_functions_of_the_step():
    """Asked ahead, in order, out of order or after a restart: the same arrays."""
    def make():
        return Batches(fake.Objective(), fake.Dataset(10), seed=3, global_batch=4, accumulation=2)

    def flat(made):
        batches, witness = made
        return [array.tobytes() for batch in batches for array in batch] + [witness.data.hex, witness.draws.hex]

    straight = make()
    taken = [flat(straight.take(step, last=step == 9)) for step in range(10)]
    assert taken[7] == flat(make().take(7, last=True)) == flat(make().make(7))
    assert len(set(map(tuple, taken))) == 10


def test_a_sample_that_comes_twice_in_a_batch_is_drawn_twice():
    batches = Batches(fake.Objective(), fake.Dataset(2), seed=3, global_batch=4, accumulation=1)
    (x, y, _), = batches.make(0)[0]
    assert len({row.tobytes() for row in y}) == 2 and len({row.tobytes() for row in x}) == 4


@pytest.mark.parametrize("ranks, accumulation", [(1, 4), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_all_layouts_read_and_draw_the_same(ranks, accumulation):
    """The ranks' digests of a step add up to those of one process; another seed gives others."""
    def made(rank, ranks, accumulation, step, seed=3):
        batches = Batches(fake.Objective(), fake.Dataset(5), seed, 8, accumulation, Layout(rank, ranks))
        return batches.make(step)[1]

    def summed(kind, witnesses):
        return Digest(sum(getattr(witness, kind).limbs for witness in witnesses))

    for step in (0, 3):
        one, other = made(0, 1, 1, step), made(0, 1, 1, step, seed=4)
        parts = [made(rank, ranks, accumulation, step) for rank in range(ranks)]
        assert summed("data", parts) == one.data != other.data
        assert summed("draws", parts) == one.draws != other.draws
    assert made(0, 1, 1, 0).draws != made(0, 1, 1, 1).draws
