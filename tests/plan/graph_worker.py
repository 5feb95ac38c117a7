"""What the compiled step of each nano model computes and keeps: `python -m tests.plan.graph_worker [fused]` says it.

With `fused` the operations take their Ascend form and weights are bfloat16; that form is chosen at the first import of
`mindglm.ops`, hence a program of its own.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

SAMPLES, PIXELS, TEXT, LAYERS = 2, 128, 8, 2


def measure(form: str) -> dict[str, dict[str, int]]:
    """{model: {forward, backward: FLOPs; kept: bytes; launches, launches_back: kernels}} of SAMPLES samples."""
    import mindspore as ms
    from mindspore import Tensor, nn
    from mindspore.train.mind_ir_pb2 import ModelProto

    from mindglm.train.work import gradient_function
    from tests.plan import graphs, real

    class Step(nn.Cell):
        """The step as the trainer compiles it; parameters keep their names."""

        def __init__(self, network):
            super().__init__(auto_prefix=False)
            self.network = network
            self.function = gradient_function(network, network.trainable_params(), compiled=False)

        def construct(self, *batch):
            return self.function(*batch)

    found = {}
    for model, kind in real.OBJECTIVES.items():
        loaded = real.resized(real.nano(model), LAYERS)
        network = kind(loaded.model.model_config, loaded.objective, real.SEED).network
        for parameter in network.get_parameters():
            parameter.set_dtype(ms.bfloat16 if form == "fused" else ms.float32)
        arrays = real.batch(loaded, SAMPLES, PIXELS, TEXT)
        with tempfile.TemporaryDirectory() as folder:
            ms.export(Step(network), *map(Tensor, arrays), file_name=f"{folder}/step", file_format="MINDIR")
            proto = ModelProto()
            proto.ParseFromString(Path(folder, "step.mindir").read_bytes())
        graph = graphs.Graph(proto)
        found[model] = {"forward": graph.flops(True), "backward": graph.flops(False),
                        "kept": sum(graph.kept().values()),
                        "launches": graph.kernels(True), "launches_back": graph.kernels(False)}
    return found


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "composed"
    if wanted == "fused":
        os.environ["MINDGLM_OPS"] = "ascend"
    print(json.dumps(measure(wanted)))
