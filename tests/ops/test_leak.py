"""Memory of long runs on CPU: what MindSpore keeps for ever, and that a compiled step keeps nothing."""

import subprocess
import sys

from tests.parallel.job import ROOT

GROWTH = """
import sys

import numpy as np
from mindspore import ops as msops
from mindspore import Tensor

from mindglm import ops  # noqa: F401  (CPU launch mode)
from tests.benchmarks.soak import resident
from tests.train import fake


def growth(call, count):
    for _ in range(count // 5):
        call()
    before = resident()
    for _ in range(count):
        call()
    return (resident() - before) / count


if sys.argv[1] == "product":
    times, x = msops.MatMul(), Tensor(np.ones((8, 8), np.float32))
    print(growth(lambda: times(x, x), 5000))
else:
    trainer = fake.make_trainer(fake.make_recipe(sys.argv[2], mode=int(sys.argv[3])))
    batches, _ = trainer.batches.take(0, last=True)
    print(growth(lambda: trainer._step(batches, 1e-3, 1), 1000))
"""


def growth_of(*what) -> float:
    """Bytes by which a process grows for each call."""
    command = [sys.executable, "-c", GROWTH, *map(str, what)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_mindspore_keeps_the_scalar_arguments_of_operations():
    """A matrix product has two, its flags. Once this fails MindSpore is mended: ops.end_to_end and
    ops.sum_of_squares may then stay on the device, and the note in docs/*/troubleshooting.md may go."""
    assert growth_of("product") > 2 * 512


def test_a_compiled_step_keeps_nothing(tmp_path):
    """Gradients, sums, norm, clipping and update. In PyNative mode the same step keeps several thousand bytes."""
    assert growth_of("step", tmp_path / "compiled", "0") < 300
    assert growth_of("step", tmp_path / "pynative", "1") > 3000
