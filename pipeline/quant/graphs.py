"""What several parts need to know of an ONNX graph."""

from __future__ import annotations

import onnx


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the constants by every name they go by: the exporter stores equal tensors once, behind Identity."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def activation_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every activation that has one, by shape inference; 0 where a size is not known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
