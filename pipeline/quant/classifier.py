"""The classifier, found by structure: the layers that no other layer follows on the way to the network's output.

Networks end in many ways: one Gemm, a MatMul with an addition, a 1x1 convolution before or after the pooling, two heads
whose scores are added, a Softmax behind any of them. What they share is that nothing with weights follows.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from pipeline.onnx_models.graphs import makers_of
from pipeline.quant.graphs import WEIGHTED, constants

# Their result depends on the shape alone: a node that reads it does not read the tensor's values.
SHAPE_READERS = frozenset({"Shape", "Size"})


def find_classifier(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the layers that compute the scores, in graph order; none where the network ends in no such layer.

    A layer counts if the output depends on it, and nothing after it has weights or multiplies activations.
    """
    known = constants(model)
    makers = makers_of(model.graph)
    waiting = [value.name for value in model.graph.output]
    seen: set[str] = set()
    found: list[str] = []
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.output[0] in seen or node.op_type in SHAPE_READERS:
            continue
        seen.add(node.output[0])
        if node.op_type not in WEIGHTED:
            waiting.extend(name for name in node.input if name not in known)
        elif node.input[1] in known or node.input[0] in known:
            found.append(node.output[0])
    layers = [node for node in model.graph.node if node.output[0] in found]
    return [node for node in layers if not _leads_to_layers(model, node)]


def _leads_to_layers(model: onnx.ModelProto, layer: onnx.NodeProto) -> bool:
    following = tail_tensors(model, [layer])
    return any(node.op_type in WEIGHTED and following.intersection(node.input) for node in model.graph.node)


def tail_tensors(model: onnx.ModelProto, layers: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the outputs of some layers and everything computed from them, up to the network's output."""
    reached = {name for node in layers for name in node.output}
    for node in model.graph.node:
        if node.op_type not in SHAPE_READERS and reached.intersection(node.input):
            reached.update(node.output)
    return reached
