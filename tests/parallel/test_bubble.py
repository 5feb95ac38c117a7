"""The bubbles that the planner counts with are those that the executor's transfers leave."""

import subprocess
import sys

import pytest

from tests.benchmarks import bubble
from tests.parallel.job import ROOT


@pytest.mark.slow
def test_bubbles_are_those_of_the_formulas():
    """1F1B and ZB-H1 at 2 to 4 ranks, within 10 %: exit code 1 otherwise."""
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.bubble"], cwd=ROOT, capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0 and done.stdout.count("| zb_h1 |") == 3, done.stdout + done.stderr


@pytest.mark.parametrize("kind", list(bubble.FORMULAS))
def test_the_formula_is_the_schedule(kind):
    """On the time axis of plan/schedules, whose units are those of the benchmark."""
    for p, m in ((2, 4), (3, 6), (4, 8)):
        table = bubble.schedules.build(kind, p, m, bubble.CHUNKS.get(kind, 1))
        assert table.bubble() == pytest.approx(bubble.formula(kind, p, m))
