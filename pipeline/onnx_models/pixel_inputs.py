"""Inputs of other images than float32 RGB: pixels of 0 to 255, and grey ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import Names, add_constant, constants_of, integer

# Operators that move values or change their type: they do the same with pixels as floats.
_MOVES = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Resize")
_TYPE_IS_FREE = ("Cast", "CastLike", "Shape", "Size", "DequantizeLinear")
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue in a grey image, as Pillow and OpenCV have it (ITU-R 601-2)


def read_luminance(model: onnx.ModelProto, image: onnx.ValueInfoProto) -> None:
    """Let a network of grey images read RGB ones: a convolution that reads the input gets its weights once a channel.

    Normalisation by one mean and deviation for all channels, as grey images have, is the same before and after. Other
    operators get the luminance from a convolution of 1x1.
    """
    graph, names, constants = model.graph, Names(model), constants_of(model.graph)
    kind = helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    shares = np.array(LUMINANCE, np.float64)[None, :, None, None]
    grey = names.free(f"{image.name}_grey")
    for node in [node for node in graph.node if image.name in node.input]:
        if node.op_type == "Conv" and node.input[0] == image.name and node.input[1] in constants:
            weights = numpy_helper.to_array(constants[node.input[1]])
            node.input[1] = add_constant(
                graph, names, f"{node.input[1]}_of_rgb", (weights.astype(np.float64) * shares).astype(weights.dtype)
            )
        else:
            node.input[:] = [grey if name == image.name else name for name in node.input]
    if any(grey in node.input for node in graph.node):
        weight = add_constant(graph, names, f"{grey}_weight", shares.astype(kind))
        graph.node.insert(0, helper.make_node("Conv", [image.name, weight], [grey], names.free(f"{grey}_node")))


def read_dequantized(model: onnx.ModelProto, image: onnx.ValueInfoProto) -> None:
    """Let operators that dequantize uint8 pixels compute the same of pixels as floats, in place."""
    graph, names, constants = model.graph, Names(model), constants_of(model.graph)
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] == image.name]:
        if any(name not in constants for name in node.input[1:]):
            continue
        axis = integer(node, "axis", 1) % 4
        scale, *zero = (
            numpy_helper.to_array(constants[name])
            .astype(np.float32)
            .reshape([-1 if at == axis else 1 for at in range(4)])
            for name in node.input[1:]
        )
        above_zero = names.free(f"{node.output[0]}_above_zero")
        first = add_constant(graph, names, f"{above_zero}_point", zero[0] if zero else np.float32(0))
        factor = add_constant(graph, names, f"{node.output[0]}_factor", scale)
        place = list(graph.node).index(node)
        graph.node.insert(place, helper.make_node("Sub", [image.name, first], [above_zero], names.free(above_zero)))
        node.CopyFrom(helper.make_node("Mul", [above_zero, factor], node.output, node.name))


def keep_integer_arithmetic(model: onnx.ModelProto, image: onnx.ValueInfoProto, kind: int) -> None:
    """Let operators that compute with pixels as integers get them as such again, in place.

    Args:
        image: the input, float32 by now.
        kind: the type that it had.
    """
    graph, names, constants = model.graph, Names(model), constants_of(model.graph)
    waiting = [image.name]
    while waiting:
        name = waiting.pop()
        readers = [node for node in graph.node if name in node.input]
        for node in readers:
            if node.op_type in _MOVES and node.input[0] == name:
                waiting += node.output
        computing = [node for node in readers if node.op_type not in (*_MOVES, *_TYPE_IS_FREE)]
        computing = [node for node in computing if not _reads_floats(node, constants)]  # of `read_dequantized`
        if not computing:
            continue
        whole, given = names.free(f"{name}_whole"), names.free(f"{name}_integers")
        for node in computing:
            node.input[:] = [given if each == name else each for each in node.input]
        place = next((index + 1 for index, node in enumerate(graph.node) if name in node.output), 0)
        # By way of int32: what another type makes of negative numbers differs between machines.
        graph.node.insert(place, helper.make_node("Cast", [name], [whole], whole, to=onnx.TensorProto.INT32))
        graph.node.insert(place + 1, helper.make_node("Cast", [whole], [given], given, to=kind))


def _reads_floats(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return any(name in constants and constants[name].data_type == onnx.TensorProto.FLOAT for name in node.input)
