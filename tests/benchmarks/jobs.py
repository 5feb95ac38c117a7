"""Starts a benchmark's own module as a job of several processes and reads what rank 0 found."""

import json
import tempfile
from pathlib import Path

from tests.parallel.job import Job


def results(module: str, ranks: int, options: dict, seconds: float = 170):
    """What `say` was given on rank 0 of `python -m module --worker OPTIONS` in `ranks` processes."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        given = json.dumps({**options, "result": str(logs / "result.json")})
        with Job(ranks, ["-m", module, "--worker", given], logs, MS_NODE_TIMEOUT="120") as job:
            if job.wait(seconds) != [0] * ranks:
                raise SystemExit(f"a process of the benchmark failed\n{job.logs()}")
        return json.loads((logs / "result.json").read_text())


def begin(given: str) -> dict:
    """In a worker: joins the job; the options."""
    from mindglm.parallel import transport

    transport.init()
    from mindglm import ops  # noqa: F401  (CPU launch mode)

    return json.loads(given)


def say(options: dict, found) -> None:
    """In a worker: rank 0 hands `found` (of json) to `results`; all leave together."""
    from mindglm.parallel import transport

    if transport.rank() == 0:
        Path(options["result"]).write_text(json.dumps(found))
    transport.finish()
