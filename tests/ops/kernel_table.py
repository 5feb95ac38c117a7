"""MindSpore's own knowledge about Ascend, readable without one: front-end compilation and the wheel's kernel names."""

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
# Present on Ascend in the older kernel library (CANN's operator packages, not aclnn); slower on the first call.
AICPU_OR_ACLOP = {"AddN", "Cast", "ZerosLike"}


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


def primitives(cell, *inputs) -> set[str]:
    """Names of the primitives that the compiled cell launches."""
    with tempfile.TemporaryDirectory() as folder:
        ms.export(cell, *inputs, file_name=f"{folder}/cell", file_format="MINDIR")
        model = ModelProto()
        model.ParseFromString(pathlib.Path(folder, "cell.mindir").read_bytes())
    nodes = [node.op_type for graph in [model.graph, *model.functions] for node in graph.node]
    functions = {function.name for function in model.functions}
    called = {name.removeprefix("REF::") for name in nodes} - functions
    return {name.split("::")[-1].split(":")[0] for name in called} - STRUCTURE


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
    """Primitives that would launch a kernel which the table does not have; *View primitives only describe memory."""
    return {name for name in launched - ascend_kernels() if not name.endswith("View")} - AICPU_OR_ACLOP
