"""One rank of the job of test_pipeline.py: checks the transport, runs the cases and saves what this rank found."""

import sys
from pathlib import Path

import numpy as np

from mindglm.parallel import transport

if __name__ == "__main__":
    folder, which = Path(sys.argv[1]), sys.argv[2]
    transport.init()
    from tests.parallel import collective_checks, pipeline_cases
    from tests.parallel.test_pipeline import CASES

    collective_checks.check_all()
    for case in CASES[which]:
        executor = pipeline_cases.executor(case, transport.world())
        micro_batches = pipeline_cases.batches(case)
        result = executor(micro_batches)
        again = executor(micro_batches)
        assert all((a.asnumpy() == b.asnumpy()).all() for a, b in zip(result.gradients, again.gradients)), case.name
        np.savez(folder / f"{case.name}_{transport.rank()}.npz", loss=result.loss_sum, weight=result.weight_sum,
                 evaluated=executor.evaluate(micro_batches[:3]),
                 **{"grad." + p.name: g.asnumpy() for p, g in zip(executor.parameters, result.gradients)})
    transport.finish()
