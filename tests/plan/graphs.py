"""A compiled gradient read as a list of operations with shapes: FLOPs, and what forward leaves to backward.

The graph is the front end's own (ms.export of the step that the trainer runs), so it can be made for the Ascend form of
the operations too, without the device. An operation belongs to the forward half if the loss depends on it.
"""

import math
from dataclasses import dataclass

BYTES = {1: 4, 6: 4, 7: 8, 9: 1, 10: 2, 16: 2}
"""Of a number, by MindIR's data type: float32, int32, int64, bool, float16, bfloat16."""
PRODUCTS = {"Dense", "MatMul", "MatMulExt", "BatchMatMul", "BatchMatMulExt"}
ALIASES = {"Reshape", "Load", "Depend", "SplitTensorView", "NarrowView", "SplitWithSizeView", "BroadcastToView"}
"""Operations whose result lies where their first input lies."""
SILENT = {"TupleGetItem", "MakeTuple", "UpdateState"}
"""Bookkeeping."""


@dataclass(frozen=True)
class Node:
    """One operation."""

    kind: str
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of its results."""
    bytes: tuple[int, ...]


class Graph:
    """A model read from MindIR."""

    def __init__(self, model):
        """model: mindspore.train.mind_ir_pb2.ModelProto, without functions (all inlined)."""
        assert not model.functions, "the graph was not inlined"
        self.nodes, self.given, self.constants = {}, {}, {}
        for entry in model.graph.input:
            self.given[entry.name] = tuple(entry.tensor[0].dims)
        self.weights = {parameter.name: tuple(parameter.dims) for parameter in model.graph.parameter}
        for node in model.graph.node:
            kind = node.op_type.split("::")[-1].split(":")[0]
            attributes = {attribute.name: attribute for attribute in node.attribute}
            if kind == "Constant":
                self.constants[node.output[0]] = attributes["value"]
                continue
            tensors = _tensors(attributes["shape"]) if "shape" in attributes else []
            self.nodes[node.output[0]] = Node(
                kind, tuple(node.input), tuple(tuple(tensor.dims) for tensor in tensors),
                tuple(math.prod(tensor.dims) * BYTES[tensor.data_type] for tensor in tensors))
        self.result = model.graph.output[0].name
        self.forward = self._ancestors(self._loss())

    def _loss(self) -> str:
        node = self.nodes[self.result]
        while node.kind == "Depend":
            node = self.nodes[node.inputs[0]]
        assert node.kind == "MakeTuple", node.kind
        return node.inputs[0]

    def _ancestors(self, name: str) -> set[str]:
        found, todo = set(), [name]
        while todo:
            name = todo.pop()
            if name in self.nodes and name not in found:
                found.add(name)
                todo += self.nodes[name].inputs
        return found

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor; None for constants and tuples."""
        if name in self.nodes:
            shapes = self.nodes[name].shapes
            return shapes[0] if len(shapes) == 1 else None
        return self.given.get(name, self.weights.get(name))

    def flops(self, forward: bool) -> int:
        """Of the products in one half of the graph; a multiply-add counts as two."""
        return sum(self._flops(node) for name, node in self.nodes.items() if (name in self.forward) == forward)

    def _flops(self, node: Node) -> int:
        if node.kind in PRODUCTS:
            out, (left, right) = node.shapes[0], map(self.shape, node.inputs[:2])
            # Every number of a factor meets one of each row or column of the other; one of them may be a constant.
            return 2 * (math.prod(right) * out[-2] if left is None else math.prod(left) * out[-1])
        if node.kind.startswith("FlashAttentionScore"):
            (b, heads, s, width), (*_, t, _) = self.shape(node.inputs[0]), self.shape(node.inputs[1])
            sparse = self._whole_number(node.inputs[-1])
            pairs = s * (s + 1) // 2 if sparse == 2 else s * t
            return (2 if node.kind == "FlashAttentionScore" else 5) * 2 * b * heads * pairs * width
        return 0

    def _whole_number(self, name: str) -> int:
        return self.constants[name].ints[0] if self.constants[name].ints else self.constants[name].i

    def storage(self, name: str) -> tuple[str, int]:
        """(the operation, which of its results) whose memory a tensor lies in."""
        number = 0
        while name in self.nodes:
            node = self.nodes[name]
            if node.kind == "TupleGetItem":
                number = self._whole_number(node.inputs[1])
                name = node.inputs[0]
                if self.nodes[name].kind not in ALIASES:
                    return name, number
            elif node.kind in ALIASES:
                name = node.inputs[0]
            else:
                return name, 0
        return name, 0

    def kept(self) -> dict[tuple[str, int], int]:
        """{storage: bytes} of what the forward half computes, or is given, and the backward half reads."""
        found = {}
        todo = [source for name, node in self.nodes.items() if name not in self.forward and node.kind not in SILENT
                for source in node.inputs]
        while todo:
            name, number = self.storage(todo.pop())
            if name in self.given:
                found[name, 0] = 4 * math.prod(self.given[name])
            elif name in self.forward and self.nodes[name].kind == "MakeTuple":
                todo += self.nodes[name].inputs
            elif name in self.forward and self.nodes[name].bytes:
                found[name, number] = self.nodes[name].bytes[number]
        return found

    def kernels(self, forward: bool) -> int:
        """Operations of one half that launch something; views and bookkeeping do not."""
        views = ALIASES | SILENT | {"Transpose"}
        kinds = [node.kind for name, node in self.nodes.items() if (name in self.forward) == forward]
        return sum(kind not in views for kind in kinds)


def _tensors(attribute) -> list:
    """The tensors that a node's attribute `shape` tells of, those of a tuple in order."""
    if attribute.tensors:
        return list(attribute.tensors)
    return [tensor for value in attribute.values for tensor in _tensors(value)]
