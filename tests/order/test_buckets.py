"""Buckets over a grid of counts: shares, epochs without loss, any step at once, and one bucket as without buckets."""

import time
from collections import Counter
from fractions import Fraction
from math import gcd

import numpy as np
import pytest

from mindglm import order
from mindglm.order.buckets import DISCREPANCY

GRID = [(5,), (1, 1), (3, 1), (1, 999), (7, 7, 7), (2, 3, 5), (1, 1, 1, 1, 1, 1, 1), (1, 2, 4, 8, 16, 32, 64, 128),
        (1, 1, 2, 3, 5, 8, 13, 21, 34, 55), (100, 0, 50), (17, 4099, 256, 3), tuple(range(1, 31)), (1,) * 63 + (63,)]


def members_of(counts):
    """Sample ids of each bucket: interleaved, as a dataset deals them."""
    where = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return [np.flatnonzero(where == bucket) for bucket in range(len(counts))]


@pytest.mark.parametrize("counts", GRID, ids=str)
def test_every_bucket_keeps_its_share_at_every_step(counts):
    total, taken, worst = sum(counts), Counter(), Fraction(0)
    for step in range(600):
        bucket, turn = order.bucket_turn(3, step, counts)
        assert turn == taken[bucket] and counts[bucket] > 0, step
        taken[bucket] += 1
        worst = max(worst, *(abs(taken[b] - Fraction((step + 1) * n, total)) for b, n in enumerate(counts)))
    assert worst < DISCREPANCY, float(worst)


@pytest.mark.parametrize("counts", [counts for counts in GRID if sum(counts) < 600], ids=str)
def test_shares_are_exact_when_all_buckets_can_have_them(counts):
    period = sum(counts) // gcd(*counts)
    for start in (0, 7 * period):
        taken = Counter(order.bucket_turn(5, start + step, counts)[0] for step in range(period))
        assert [taken[b] for b in range(len(counts))] == [period * n // sum(counts) for n in counts]


@pytest.mark.parametrize("batch", [1, 2, 7, 16])
@pytest.mark.parametrize("counts", [(6,), (3, 9), (5, 0, 11), (2, 3, 4, 33)], ids=str)
def test_every_epoch_of_a_bucket_holds_its_samples_once(counts, batch):
    members, streams = members_of(counts), [[] for _ in counts]
    for step in range(-(-4 * sum(counts) // batch) + 40):
        bucket, ids = order.bucket_batch(7, step, batch, members)
        assert ids.shape == (batch,)
        streams[bucket].extend(ids.tolist())
    for own, stream in zip(members, streams):
        n = len(own)
        assert len(stream) >= 3 * n
        for start in range(0, len(stream) - n + 1, max(n, 1)):
            assert sorted(stream[start:start + n]) == own.tolist()


@pytest.mark.parametrize("counts, batch", [((30, 10), 4), ((5, 64, 17), 8), ((100, 3), 16)])
def test_all_samples_are_seen_equally_often(counts, batch):
    """After s steps a sample was taken s * batch / samples times, but for DISCREPANCY batches of its bucket."""
    members, seen = members_of(counts), Counter()
    for step in range(1, 1201):
        seen.update(order.bucket_batch(11, step - 1, batch, members)[1].tolist())
        if step % 100 == 0:
            for own in members:
                passes, slack = step * batch / sum(counts), DISCREPANCY * batch / len(own) + 1
                assert all(abs(seen[i] - passes) < slack for i in own.tolist()), (step, own)


def test_one_bucket_is_the_order_without_buckets():
    for n, batch in ((1, 3), (40, 6), (33, 50)):
        for step in (0, 1, 9, 77, 10**6):
            bucket, ids = order.bucket_batch(5, step, batch, [np.arange(n)])
            assert bucket == 0 and np.array_equal(ids, order.batch_ids(5, step, batch, n))
    assert order.batch_ids(5, 9, 6, 40).tolist() == [34, 10, 11, 14, 3, 31], "the order runs were trained in"


def test_a_far_step_is_answered_at_once_and_as_near_ones_are():
    counts, far = (123_456_789, 7, 98_765_431, 1_000_003), 10**15
    start = time.process_time()
    answers = [order.bucket_turn(1, far + i, counts) for i in range(40)]
    assert time.process_time() - start < 0.5
    for bucket in range(4):
        turns = [turn for other, turn in answers if other == bucket]
        assert turns == list(range(turns[0], turns[0] + len(turns))) if turns else counts[bucket] < 10**7
        assert all(abs(turn - far * counts[bucket] / sum(counts)) < 60 for turn in turns)
    members = members_of((30, 10, 5))
    alone = order.bucket_batch(1, 500, 4, members)
    for step in range(500):
        order.bucket_batch(1, step, 4, members)
    again = order.bucket_batch(1, 500, 4, members)
    assert alone[0] == again[0] and np.array_equal(alone[1], again[1])


def test_seeds_differ_and_buckets_of_one_size_have_orders_of_their_own():
    runs = {tuple(order.bucket_turn(seed, step, (1, 1))[0] for step in range(64)) for seed in range(5)}
    assert len(runs) == 5
    assert not np.array_equal(order.epoch_order(0, 0, 50, 0), order.epoch_order(0, 0, 50, 1))


@pytest.mark.parametrize("interval", [2, 3, 4, 5, 8, 10, 16])
def test_every_nth_step_meets_every_bucket(interval):
    """A run that logs or validates every n-th step sees the buckets in about their shares."""
    for counts in ((1, 1), (1,) * 4, (3, 1), (1,) * 16):
        met = Counter(order.bucket_turn(2, step, counts)[0] for step in range(0, 300 * interval, interval))
        for bucket, count in enumerate(counts):
            assert abs(met[bucket] / 300 - count / sum(counts)) < 0.12, (counts, met)
            assert met[bucket], (counts, met)


def test_mix_is_the_share_of_every_bucket():
    assert order.mix(64, (30, 10)) == (30, 10) and order.mix(8, (30, 10)) == (6, 2) and order.mix(5, (0, 0)) == (0, 0)
    for counts in GRID:
        for samples in (0, 1, 2, 7, 64, 10**4):
            taken = order.mix(samples, counts)
            assert sum(taken) == min(samples, sum(counts))
            for n, count in zip(taken, counts):
                assert 0 <= n <= count and abs(n - sum(taken) * count / sum(counts)) < 1
