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
