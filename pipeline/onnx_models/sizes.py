"""Sizes that a graph computes from shapes, as torch writes `chunk` for a tensor whose shape it lost: written down.

Shape inference does not divide, so that it knows nothing behind a cut at half of the channels. What does not depend on
the batch is a constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.onnx_models.graphs import constants_of, integer, makers_of, replace_nodes, shapes_of

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Unsqueeze", "Squeeze", "Concat", "Cast")
_MOST_VALUES = 8  # of a size, or a list of them


def write_sizes(model: onnx.ModelProto) -> bool:
    """Turn sizes of axes other than the batch, and what is computed from them alone, into constants, in place.

    Args:
        model: whose input is declared [N, C, H, W], with N free. A tensor whose batch is not known to be free yet is
            left alone: its sizes may hold those of other images.

    Returns:
        Whether there were any.
    """
    changed = False
    while _write_round(model):  # what lies behind a cut is known when its place is
        changed = True
    return changed


def _write_round(model: onnx.ModelProto) -> bool:
    graph = model.graph
    if all(node.op_type != "Shape" for node in graph.node):
        return False
    shapes, known, makers = shapes_of(model), constants_of(graph), makers_of(graph)
    written: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if node.op_type == "Gather":
            value = _size(node, makers, shapes, known)
        else:
            value = _computed(node, known, written, model.opset_import[0])
        if value is not None:
            written[node.output[0]] = known[node.output[0]] = numpy_helper.from_array(value, node.output[0])
    if written:
        replace_nodes(graph, [node for node in graph.node if node.output[0] not in written])
        graph.initializer.extend(written.values())
    return bool(written)


def _size(
    node: onnx.NodeProto,
    makers: dict[str, onnx.NodeProto],
    shapes: dict[str, list[int | str | None]],
    known: dict[str, onnx.TensorProto],
) -> npt.NDArray[np.generic] | None:
    """Return the sizes that a Gather picks of a shape, None where they are not known or hold the batch."""
    shape_of = makers.get(node.input[0])
    if shape_of is None or shape_of.op_type != "Shape" or node.input[1] not in known:
        return None
    shape = shapes.get(shape_of.input[0], [])
    if integer(shape_of, "start", 0) != 0 or integer(shape_of, "end", len(shape)) != len(shape):
        return None
    if [axis for axis, size in enumerate(shape) if not isinstance(size, int)] != [0] or integer(node, "axis", 0) != 0:
        return None  # only a batch that leads is known to be free
    places = numpy_helper.to_array(known[node.input[1]])
    if any(not -len(shape) <= place < len(shape) or not isinstance(shape[place], int) for place in places.flat):
        return None
    sizes: npt.NDArray[np.generic] = np.array([shape[place] for place in places.flat], np.int64).reshape(places.shape)
    return sizes


def _computed(
    node: onnx.NodeProto,
    known: dict[str, onnx.TensorProto],
    written: dict[str, onnx.TensorProto],
    opset: onnx.OperatorSetIdProto,
) -> npt.NDArray[np.generic] | None:
    """Return the integers that a node computes from written sizes and constants; None for any other node."""
    inputs = [name for name in node.input if name]
    if node.op_type not in _ARITHMETIC or not written.keys() & set(inputs) or not known.keys() >= set(inputs):
        return None
    tensors = [known[name] for name in inputs]
    if any(np.prod(tensor.dims, dtype=np.int64) > _MOST_VALUES for tensor in tensors):
        return None
    output = helper.make_empty_tensor_value_info(node.output[0])
    given = [numpy_helper.from_array(numpy_helper.to_array(known[name]), name) for name in dict.fromkeys(inputs)]
    graph = helper.make_graph([node], "sizes", [], [output], given)
    outputs: Any = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset])).run(None, {})
    value = np.asarray(outputs[0])
    return value if value.dtype == np.int64 else None
