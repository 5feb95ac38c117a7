"""One rank of tests/train/test_replay.py: a run in a layout whose weights overflow; it stops with a capsule.

    python tests/train/capsule_worker.py FOLDER CASE        CASE is json, as in tests/parallel/same_run_worker.py
"""

import dataclasses
import json
import sys
from pathlib import Path


def main(case: dict, folder: Path) -> None:
    import numpy as np
    from mindspore import Tensor

    from mindglm import recipe
    from mindglm.errors import UserError
    from mindglm.recipe import schema
    from mindglm.train import layout, objectives, pipeline
    from mindglm.train.loop import Trainer
    from tests.parallel import same_run_worker as runs

    settings = dataclasses.replace(
        runs.recipe_of(case, folder), runner_wrapper=schema.RunnerWrapperSection(max_skipped_steps=0),
        validation=schema.ValidationSection(), train_dataset=schema.DatasetSection("made up in this test"))
    data, here = runs.Samples("dit"), layout.here(settings.parallel_config)
    objective = objectives.build(settings, pipeline.parts(settings, here, data))
    for parameter in objective.model.get_parameters():
        parameter.set_data(Tensor(parameter.asnumpy() * np.float32(1e20)))
    trainer = Trainer(settings, recipe.to_yaml(settings), objective, data, layout=here)
    try:
        trainer.fit()
    except UserError as error:
        assert "mindglm replay" in str(error), error
        return
    raise AssertionError("the run did not stop")


if __name__ == "__main__":
    from mindglm.parallel import transport

    transport.init()
    from mindglm import ops  # noqa: F401  (CPU launch mode)

    main(json.loads(sys.argv[2]), Path(sys.argv[1]))
    transport.finish()
