"""Einsum of two tensors as the matrix product that it is, which can be int8: as of flax's attention and projections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    constants_of,
    integers_tensor,
    remove_unused,
    replace_nodes,
    text,
)


@dataclass
class _Maker:
    """Nodes that take the place of one Einsum."""

    graph: onnx.GraphProto
    names: Names
    prefix: str
    nodes: list[onnx.NodeProto]

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        made = self.names.free(f"{self.prefix}_{kind.lower()}")
        self.nodes.append(helper.make_node(kind, inputs, [made], made, **attributes))
        return made

    def transposed(self, x: str, given: str, wanted: str) -> str:
        return x if given == wanted else self.op("Transpose", x, perm=[given.index(letter) for letter in wanted])

    def reshaped(self, x: str, sizes: Sequence[int]) -> str:
        return self.op("Reshape", x, integers_tensor(self.graph, self.names, f"{self.prefix}_sizes", sizes))


def use_products(model: onnx.ModelProto) -> int:
    """Write each Einsum that is one matrix product as MatMul, with Transposes and Reshapes around, in place.

    Taken are products with a constant, over any axes, and of two activations over one axis each. Returns how many.

    Args:
        model: float32, opset 13 or later.
    """
    graph, names, constants, written = model.graph, Names(model), constants_of(model.graph), 0
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        made = _product(graph, names, node, constants) if node.op_type == "Einsum" else []
        if made:
            made[-1].output[0] = node.output[0]
        nodes += made or [node]
        written += bool(made)
    if written:
        replace_nodes(graph, nodes)
        remove_unused(graph)
    return written


def _product(
    graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return the nodes that stand for an Einsum; none where it is no product of these."""
    given, _, out = text(node, "equation", "").replace(" ", "").partition("->")
    letters = given.split(",")
    if len(letters) != 2 or not out or any(len(set(each)) != len(each) or "." in each for each in (*letters, out)):
        return []
    one, other, inputs = letters[0], letters[1], list(node.input)
    if inputs[0] in constants:  # the constant second, as weights are
        one, other, inputs = other, one, inputs[::-1]
    shared = [each for each in one if each in other]
    batch = "".join(each for each in shared if each in out)
    summed = "".join(each for each in shared if each not in out)
    rows, columns = ("".join(each for each in side if each not in shared) for side in (one, other))
    if not summed or not rows or not columns or set(out) != {*batch, *rows, *columns}:
        return []
    make = _Maker(graph, names, node.name or node.output[0], [])
    if inputs[1] in constants and inputs[0] not in constants and not batch:
        weights = numpy_helper.to_array(constants[inputs[1]])
        found = _with_constant(make, inputs[0], weights, (one, other), (rows, summed, columns))
    elif len(rows) == len(summed) == len(columns) == 1 and batch:
        x = make.transposed(inputs[0], one, batch + rows + summed)
        found = make.op("MatMul", x, make.transposed(inputs[1], other, batch + summed + columns))
    else:
        return []
    make.transposed(found, batch + rows + columns, out)
    return make.nodes


def _with_constant(
    make: _Maker, x: str, weights: npt.NDArray[np.generic], letters: tuple[str, str], axes: tuple[str, str, str]
) -> str:
    """Return the product [rows, columns] of an activation and a constant."""
    (one, other), (rows, summed, columns) = letters, axes
    ordered = weights.transpose([other.index(letter) for letter in summed + columns])
    sizes = ordered.shape[len(summed) :]
    matrix = ordered.reshape(-1, math.prod(sizes))
    x = make.transposed(x, one, rows + summed)
    if len(summed) > 1:
        x = make.reshaped(x, [*[0] * len(rows), len(matrix)])
    x = make.op("MatMul", x, add_constant(make.graph, make.names, f"{make.prefix}_weights", matrix))
    return make.reshaped(x, [*[0] * len(rows), *sizes]) if len(columns) > 1 else x
