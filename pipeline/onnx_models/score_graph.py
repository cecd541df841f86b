"""Queries of the trace back from a classifier's output: producers, constants, shapes, axes.

Axes count from the end, as in broadcasting; None is an unknown axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.onnx_models.graphs import makers_of, without_weights

CLOSE = 1e-3  # an epsilon that is added to scores, or that they are clipped at
COPIES = frozenset({"Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear"})  # output: the first input

_LARGEST_CONSTANT = 1 << 16  # elements; weights are not read
_NEVER_NEGATIVE = ("Exp", "Relu", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Abs")


class Graph:
    """A model, queried by the names of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.output = model.graph.output[0].name
        self.opset = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
        self.makers = makers_of(model.graph)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def attribute(self, node: onnx.NodeProto, name: str, default: Any = None) -> Any:
        found = next((each for each in node.attribute if each.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def origin(self, name: str) -> str:
        """Return the tensor that another is a copy of."""
        node = self.makers.get(name)
        return self.origin(node.input[0]) if node is not None and node.op_type in COPIES else name

    def maker(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """Return the node that computes a tensor, through copies, if it is of one of the given kinds."""
        node = self.makers.get(self.origin(name))
        return node if node is not None and node.op_type in kinds else None

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return the elements of a small constant, also through operators that only store or move them."""
        tensor, node = self._initializers.get(name), self.makers.get(name)
        if tensor is not None:
            return numpy_helper.to_array(tensor) if math.prod(tensor.dims) <= _LARGEST_CONSTANT else None
        if node is None:
            return None
        if node.op_type in (*COPIES, "Unsqueeze", "Reshape"):
            return self.constant(node.input[0])
        if node.op_type != "Constant":
            return None
        value = self.attribute(node, "value")
        if value is not None:
            return numpy_helper.to_array(value)
        plain = (self.attribute(node, f"value_{kind}") for kind in ("float", "floats", "int", "ints"))
        return next((np.asarray(each) for each in plain if each is not None), None)

    def number(self, name: str) -> float | None:
        """Return the number that all elements of a constant equal."""
        found = self.constant(name)
        if found is None or not found.size or found.dtype.kind not in "fiu":
            return None
        values = found.astype(np.float64).reshape(-1)
        return float(values[0]) if float(np.ptp(values)) <= 1e-6 * abs(float(values[0])) else None

    def bounds(self, node: onnx.NodeProto) -> tuple[float | None, float | None]:
        """Return both bounds of a Clip."""
        if self.opset < 11:
            return self.attribute(node, "min"), self.attribute(node, "max")
        low, high = ([*node.input, "", ""])[1:3]
        return self.number(low), self.number(high)

    @cached_property
    def _shapes(self) -> dict[str, list[int | None]]:
        graph = onnx.shape_inference.infer_shapes(without_weights(self._model), data_prop=True).graph
        kinds = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
        return {
            name: [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
            for name, kind in kinds.items()
            if kind.HasField("shape")
        }

    def shape(self, name: str) -> list[int | None] | None:
        """Return the sizes of a tensor's axes; None where it is not known."""
        return self._shapes.get(name)

    def from_end(self, axis: int, name: str) -> int | None:
        """Return an axis of a tensor from its number in an attribute."""
        shape = self.shape(name)
        return axis if axis < 0 else None if shape is None else axis - len(shape)

    def axes(self, node: onnx.NodeProto) -> list[int | None]:
        """Return the axes that a node reduces; none where they are not constants."""
        given = self.attribute(node, "axes")
        if given is None and len(node.input) > 1:
            found = self.constant(node.input[1])
            given = None if found is None else found.reshape(-1).tolist()
        return [self.from_end(int(each), node.input[0]) for each in given or ()]

    def axis_before(self, node: onnx.NodeProto, axis: int | None) -> int | None:
        """Return the axis of a node's input that becomes `axis` of its output, where the node only moves values."""
        before, after = self.shape(node.input[0]), self.shape(node.output[0])
        if axis is None or after is None:
            return None
        if node.op_type == "Transpose":
            permutation = self.attribute(node, "perm", list(range(len(after)))[::-1])
            return int(permutation[axis]) - len(permutation)
        # An axis of the same size with as many elements after it has the same place in memory.
        size, behind = after[axis], _elements(after, axis)
        for place in range(-1, -len(before or ()) - 1, -1):
            if before is not None and size is not None and (before[place], _elements(before, place)) == (size, behind):
                return place
        return None

    def goes_along(self, node: onnx.NodeProto, axis: int | None) -> bool:
        """Tell whether a softmax goes over the classes and nothing else."""
        shape = self.shape(node.input[0])
        given = int(self.attribute(node, "axis", -1 if self.opset >= 13 else 1))
        found = self.from_end(given, node.input[0])
        if self.opset < 13 and found is not None and shape is not None:  # over all axes from this one on
            wide = [place for place in range(found, 0) if shape[place] != 1]
            found = found if not wide else wide[0] if len(wide) == 1 else None
        if shape is None:
            return given in (1, -1) if axis in (None, -1) else given == axis
        if axis is None:
            return [place for place in range(-len(shape), 0) if shape[place] not in (None, 1)] == [found]
        return found == axis

    def summed_over(self, name: str, axis: int | None) -> str | None:
        """Return the tensor whose sum over the classes equals another, apart from an epsilon."""
        node = self.maker(name, "ReduceSum", "ReduceL1", "Add", "Clip", "Max", "Expand", "Unsqueeze")
        if node is None:
            return None
        if node.op_type.startswith("Reduce"):
            return self.origin(node.input[0]) if self.axes(node) == [axis] else None
        added = self.number(node.input[1]) if node.op_type in ("Add", "Max") else 0.0
        return self.summed_over(node.input[0], axis) if added is not None and abs(added) <= CLOSE else None

    def is_never_negative(self, name: str) -> bool:
        """Tell whether a tensor's operator never returns negative values."""
        node = self.maker(name, *_NEVER_NEGATIVE, "Add", "Clip")
        if node is None:
            return False
        if node.op_type not in ("Add", "Clip"):
            return True
        least = self.number(node.input[1]) if node.op_type == "Add" else self.bounds(node)[0]
        return least is not None and least >= 0 and (node.op_type == "Clip" or self.is_never_negative(node.input[0]))


def _elements(shape: Sequence[int | None], axis: int) -> int | None:
    """Return the stride of an axis in elements."""
    behind = shape[len(shape) + axis + 1 :]
    return None if None in behind else math.prod(size for size in behind if size is not None)
