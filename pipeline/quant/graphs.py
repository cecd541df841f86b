"""Queries on ONNX graphs that several modules need: constants, shapes, layers, types."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx

from pipeline.onnx_models.graphs import without_weights

MATRIX = ("Gemm", "MatMul")
WEIGHTED = ("Conv", *MATRIX)
_MAKE_INTEGERS = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero"})
_MAKE_BOOLEANS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "IsNaN"})


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the constants by all of their names: the exporter stores equal tensors once, with Identity nodes."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def activation_shapes(model: onnx.ModelProto, *, computed: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the shape of every activation that has one, by shape inference; 0 where a size is not known.

    Args:
        computed: follow shapes through the arithmetic that a model does with them.
    """
    # Without the weights, of which inference would make three copies (1.5 GB for a VGG).
    graph = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=computed).graph
    values = (*model.graph.input, *graph.value_info, *graph.output)
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def weighted_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield convolutions and matrix products, those of two activations among them, in graph order."""
    return (node for node in model.graph.node if node.op_type in WEIGHTED)


def not_float32(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors of other types than float32: shape arithmetic, and what is computed in float64.

    Types are followed through the graph here, since onnx's type inference copies the weights: an operator's output has
    the type of its first input, except for operators with a fixed output type.
    """
    other = {tensor.name for tensor in graph.initializer if tensor.data_type != onnx.TensorProto.FLOAT}
    for node in graph.node:
        attributes = {each.name: each for each in node.attribute}
        if node.op_type == "Cast":
            is_other = attributes["to"].i != onnx.TensorProto.FLOAT
        elif node.op_type in ("Constant", "ConstantOfShape"):
            is_other = "value" in attributes and attributes["value"].t.data_type != onnx.TensorProto.FLOAT
        elif node.op_type == "Where":
            is_other = node.input[1] in other
        else:
            from_input = bool(node.input) and node.input[0] in other
            is_other = from_input or node.op_type in _MAKE_INTEGERS | _MAKE_BOOLEANS
        if is_other:
            other.update(node.output)
    return other


def work_of_layers(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates of each layer for one image; 0 where shapes are not known.

    Products of two activations, as in attention, are layers too.
    """
    shapes = activation_shapes(model, computed=True)
    known = constants(model)
    work = {}
    for node in weighted_nodes(model):
        output = shapes.get(node.output[0], ())
        positions = [max(1, size) for size in output[:1]] + list(output[1:])  # an unknown batch size counts as 1
        weights = known[node.input[1]].dims if node.input[1] in known else ()
        left = shapes.get(node.input[0], ())
        if node.op_type == "Conv":
            work[node.name] = math.prod(positions) * math.prod(weights[1:]) if output and weights else 0
        elif output and left:
            work[node.name] = math.prod(positions) * left[-1]
        else:
            work[node.name] = math.prod(weights) if weights else 0
    return work
