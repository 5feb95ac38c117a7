"""MindSpore's own knowledge about Ascend, readable without one: front-end compilation and the wheel's kernel names."""

import collections
import functools
import pathlib
import re
import tempfile

import mindspore as ms
from mindspore import nn, ops
from mindspore.train.mind_ir_pb2 import ModelProto

ASCEND_LIBRARY = pathlib.Path(ms.__file__).parent / "lib" / "plugin" / "libmindspore_ops_ascend.so"
# Nodes of the graph that launch nothing, or only describe a view of memory.
STRUCTURE = {
    "Constant", "Depend", "Load", "MakeTuple", "Partial", "Reshape", "Return", "Switch", "Transpose", "TupleGetItem",
    "UpdateState",
}
FUSED = {
    "Conv2DExt", "ConvolutionGrad", "Dense", "Embedding", "EmbeddingDenseBackward", "FlashAttentionScore",
    "FlashAttentionScoreGrad", "GeluExt", "GeluGradExt", "GroupNorm", "GroupNormGrad", "LayerNormExt",
    "LayerNormGradExt", "LinalgVectorNorm", "LogSoftmaxExt", "LogSoftmaxGrad", "MatMul", "MatMulExt", "RmsNorm",
    "RmsNormGrad", "RotaryPositionEmbedding", "RotaryPositionEmbeddingGrad", "SiLU", "SiLUGrad", "Softmax",
    "SoftmaxBackward", "Swiglu", "SwigluGrad",
}
"""Kernels that do the work of several plain ones, and matrix products."""
FRONT_END_ONLY = {"AddN", "TensorMove"}
"""What the front end inserts by itself: the sum of a value's gradients, and the copy of a parameter that is read twice.

Both run on Ascend from CANN's older library (the first as AccumulateNV2); dynamic graphs, which are how mindglm runs
there, add with Add and copy nothing.
"""


class Gradient(nn.Cell):
    """The gradient of a Cell with respect to all inputs; its last argument is the gradient of the output."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.weights = cell.trainable_params()
        self.gradient = ops.GradOperation(get_by_list=bool(self.weights), get_all=True, sens_param=True)

    def construct(self, *inputs):
        if self.weights:
            return self.gradient(self.cell, self.weights)(*inputs)
        return self.gradient(self.cell)(*inputs)


def count_kernels(cell, *inputs) -> dict[str, int]:
    """Kernel name -> how often the compiled cell launches it; what only describes memory is left out."""
    with tempfile.TemporaryDirectory() as folder:
        ms.export(cell, *inputs, file_name=f"{folder}/cell", file_format="MINDIR")
        model = ModelProto()
        model.ParseFromString(pathlib.Path(folder, "cell.mindir").read_bytes())
    functions = {function.name: function for function in model.functions}
    counts = collections.Counter()

    def visit(graph):
        for node in graph.node:
            name = node.op_type.removeprefix("REF::")
            if name in functions:
                visit(functions[name])
            else:
                counts[name.split("::")[-1].split(":")[0]] += 1

    visit(model.graph)
    return {name: n for name, n in counts.items() if name not in STRUCTURE and not name.endswith("View")}


def primitives(cell, *inputs) -> set[str]:
    """Names of the kernels that the compiled cell launches."""
    return set(count_kernels(cell, *inputs))


@functools.cache
def ascend_kernels() -> set[str]:
    """Operations with an aclnn kernel class in this wheel: type names mindspore::kernel::<namespace>::<Op>Ascend."""
    library = ASCEND_LIBRARY.read_bytes()
    found = set()
    for match in re.finditer(rb"N9mindspore6kernel(\d+)", library):
        after_namespace = match.end() + int(match.group(1))
        size = re.match(rb"\d+", library[after_namespace : after_namespace + 4])
        if size:
            start = after_namespace + size.end()
            name = library[start : start + int(size.group())]
            if re.fullmatch(rb"\w+Ascend", name):
                found.add(name.decode().removesuffix("Ascend"))
    return found


def without_kernel(launched: set[str]) -> set[str]:
    """Those of the names that the table of kernels does not have."""
    return launched - ascend_kernels() - FRONT_END_ONLY


def markdown(counts) -> str:
    """The table of operations by model; counts as tests/ops/whole_models.py gives them."""
    def listed(kernels, wanted):
        return ", ".join(f"{op} {n:g}" for op, n in sorted(kernels.items()) if (op in FUSED) == wanted) or "-"

    rows = ["| model: pass | launches a layer | of them fused | fused, a layer | composed, a layer | only outside "
            "layers | without a kernel |", "|---|---|---|---|---|---|---|"]
    for key, count in counts.items():
        layer = count["layer"]
        fused = sum(n for op, n in layer.items() if op in FUSED)
        outside = ", ".join(sorted(set(count["all"]) - set(layer))) or "-"
        rows.append(f"| {key} | {sum(layer.values()):.3g} | {fused:.3g} | {listed(layer, True)} | "
                    f"{listed(layer, False)} | {outside} | {', '.join(count['missing']) or '-'} |")
    return "\n".join(rows)
