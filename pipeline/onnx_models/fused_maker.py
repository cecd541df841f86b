"""Makes standard nodes in place of one node of another domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from pipeline.onnx_models.graphs import Names, add_constant, integer, integers_tensor

_SPLIT_TAKES_SIZES = 13  # the opset since which they are an input


class Maker:
    """Makes standard nodes in place of one node."""

    def __init__(self, graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, version: int) -> None:
        """Make nodes of a graph for an opset."""
        self.node = node
        self.made: list[onnx.NodeProto] = []
        self._graph, self._names, self._version = graph, names, version

    def constant(self, value: float) -> str:
        return add_constant(self._graph, self._names, f"{self.node.output[0]}_number", np.float32(value))

    def op(self, kind: str, *inputs: str, target: str | None = None, **attributes: Any) -> str:
        name = target or self._names.free(f"{self.node.output[0]}_{kind.lower()}")
        node_name = self._names.free(f"{self.node.name or self.node.output[0]}_{kind}")
        self.made.append(helper.make_node(kind, inputs, [name], node_name, **attributes))
        return name

    def sizes(self, values: Sequence[int]) -> str:
        return integers_tensor(self._graph, self._names, f"{self.node.output[0]}_sizes", values)

    def split(self, name: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Return the parts of a tensor along an axis."""
        kind = "Split"
        parts = [self._names.free(f"{self.node.output[0]}_part") for _ in sizes]
        by_input = self._version >= _SPLIT_TAKES_SIZES
        attributes: dict[str, Any] = {"axis": axis} if by_input else {"axis": axis, "split": list(sizes)}
        inputs = [name, self.sizes(sizes)] if by_input else [name]
        node_name = self._names.free(f"{self.node.name or self.node.output[0]}_{kind}")
        self.made.append(helper.make_node(kind, inputs, parts, node_name, **attributes))
        return parts

    def dims_of_constant(self, name: str) -> list[int] | None:
        """Return the shape of a constant; None for an activation."""
        return next((list(tensor.dims) for tensor in self._graph.initializer if tensor.name == name), None)

    def width(self, name: str) -> int | None:
        """Return the size of the last axis, as far as a layer or a bias right before tells; None: it is not known."""
        node = next((each for each in self._graph.node if name in each.output), None)
        if node is None or node.op_type not in ("Add", "MatMul", "FusedMatMul") or integer(node, "transB", 0):
            return None
        for source in reversed(node.input):
            dims = self.dims_of_constant(source)
            if dims and (node.op_type == "Add" or source == node.input[1]):
                return dims[-1] if dims[-1] > 1 else None
        return self.width(node.input[0]) if node.op_type == "Add" else None

    def input(self, index: int) -> str:
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def finish(self) -> list[onnx.NodeProto]:
        """Let the last node write what the fused one did; return the nodes."""
        self.made[-1].output[0] = self.node.output[0]
        return self.made
