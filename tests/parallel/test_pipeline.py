"""The pipeline's gradients are those of the undivided model: one, two and four processes, every schedule."""

import numpy as np
import pytest

from mindglm.errors import UserError
from mindglm.parallel.pipeline import Executor
from mindglm.plan import schedules
from tests.parallel import pipeline_cases
from tests.parallel.job import ROOT, Job
from tests.parallel.pipeline_cases import Case

ALL = frozenset(range(9))
CASES = {
    "one": [Case("ar", "1f1b", 2), Case("ar", "interleaved", 2, 3, ALL), Case("dit", "gpipe", 2),
            Case("dit", "interleaved", 2, 4), Case("dit_i2i", "interleaved", 2, 2, ALL)],
    "two": [Case("ar", "1f1b", 5), Case("ar", "interleaved", 3, 2, ALL), Case("dit", "gpipe", 3, 1, frozenset([1])),
            Case("dit_i2i", "1f1b", 2)],
    "four": [Case("ar", "1f1b", 6, layers=6), Case("ar", "interleaved", 5, 2, ALL, layers=6), Case("ar", "gpipe", 2),
             Case("dit", "1f1b", 5), Case("dit", "interleaved", 4, 2, layers=6, recompute=frozenset([2, 3])),
             Case("dit_i2i", "1f1b", 3, recompute=ALL), Case("dit_i2i", "interleaved", 2, 2, layers=6)],
}


@pytest.mark.parametrize("case", CASES["one"], ids=lambda case: case.name)
def test_one_process(case):
    executor = pipeline_cases.executor(case, 1)
    result = executor(pipeline_cases.batches(case))
    names = [parameter.name for parameter in executor.parameters]
    assert names == sorted(names)
    gradients = {name: g.asnumpy() for name, g in zip(names, result.gradients)}
    pipeline_cases.check(case, result.loss_sum, result.weight_sum, gradients)


def many_processes(tmp_path, which: str, workers: int) -> None:
    worker = str(ROOT / "tests/parallel/pipeline_worker.py")
    with Job(workers, [worker, str(tmp_path), which], tmp_path / "logs") as job:
        assert job.wait(900) == [0] * workers, job.logs()
    for case in CASES[which]:
        ranks = [np.load(tmp_path / f"{case.name}_{rank}.npz") for rank in range(workers)]
        gradients = {}
        for found in ranks:
            for name in found.files:
                if name.startswith("grad."):
                    assert name not in gradients, "two ranks hold one parameter"
                    gradients[name.removeprefix("grad.")] = found[name]
        assert all(found["loss"] == found["weight"] == 0 for found in ranks[:-1])
        worst = pipeline_cases.check(case, float(ranks[-1]["loss"]), float(ranks[-1]["weight"]), gradients)
        print(f"{case.name}: largest relative difference {worst:.1e}")
        if case.micro_batches <= 3:
            np.testing.assert_allclose(ranks[-1]["evaluated"], (ranks[-1]["loss"], ranks[-1]["weight"]), rtol=1e-6)


def test_two_processes(tmp_path):
    many_processes(tmp_path, "two", 2)


@pytest.mark.slow
def test_four_processes(tmp_path):
    many_processes(tmp_path, "four", 4)


def test_a_sink_takes_the_gradients_of_each_micro_batch():
    case = CASES["one"][0]
    executor, taken = pipeline_cases.executor(case, 1), []
    result = executor(pipeline_cases.batches(case), sink=lambda i, ps, gs: taken.append((i, ps, gs)))
    summed = executor(pipeline_cases.batches(case)).gradients
    assert len(result.pairs) == 2 and result.loss_sum == result.pairs[0][0] + result.pairs[1][0]
    assert result.gradients is None and [i for i, *_ in taken] == [0, 1]
    by_name = [{p.name: g.asnumpy() for p, g in zip(ps, gs)} for _, ps, gs in taken]
    for parameter, total in zip(executor.parameters, summed):
        np.testing.assert_array_equal(by_name[0][parameter.name] + by_name[1][parameter.name], total.asnumpy())


def test_zb_h1_is_refused_with_the_reason():
    with pytest.raises(UserError, match="computing the input gradients twice"):
        Executor([None], schedules.build("zb_h1", 1, 2), [0], None, None)


def test_a_wrong_number_of_micro_batches():
    case = CASES["one"][0]
    with pytest.raises(UserError, match="1 micro-batches were given to a schedule of 2"):
        pipeline_cases.executor(case, 1)(pipeline_cases.batches(case)[:1])
