"""Means over maps with channels last, as exporters of JAX write them, taken with channels first, as int8 pools are."""

from __future__ import annotations

import onnx

from pipeline.onnx_models.graphs import (
    Names,
    integers,
    integers_tensor,
    makers_of,
    readers_of,
    remove_attributes,
    remove_unused,
)
from pipeline.onnx_models.pooling import axes_of, keeps_axes

_TO_LAST = [0, 2, 3, 1]
_PLACES = (1, 2)  # height and width, with channels last
_ELEMENTWISE = ("Relu", "Sigmoid", "Tanh", "Clip", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Gelu", "Erf")


def pool_channels_first(model: onnx.ModelProto) -> int:
    """Let each mean over height and width of a transposed map read the map itself, in place; return how many.

    Functions of single values between the Transpose and the mean are applied to the map. Only means that drop the axes
    are taken: their result is the same [N, C].

    Args:
        model: float32, constants folded.
    """
    graph, names, written = model.graph, Names(model), 0
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ReduceMean" and not keeps_axes(node)]:
        first = _after_transpose(graph, node)
        if first is None or axes_of(node, constants, 4) != _PLACES:
            continue
        first.input[0] = makers_of(graph)[first.input[0]].input[0]
        if len(node.input) > 1:
            node.input[1] = integers_tensor(graph, names, f"{node.name}_axes", [2, 3])
        else:
            remove_attributes(node, "axes")
            node.attribute.append(onnx.helper.make_attribute("axes", [2, 3]))
        written += 1
    if written:
        del graph.value_info[:]
        remove_unused(graph)
    return written


def _after_transpose(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the node that reads the Transpose to channels last that a mean is taken of, itself or further up."""
    makers, readers = makers_of(graph), readers_of(graph)
    outputs = {value.name for value in graph.output}
    while (maker := makers.get(node.input[0])) is not None:
        if maker.op_type == "Transpose":
            return node if integers(maker, "perm") == _TO_LAST else None
        if maker.op_type not in _ELEMENTWISE or len(readers[maker.output[0]]) > 1 or maker.output[0] in outputs:
            return None
        node = maker
    return None
