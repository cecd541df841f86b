"""A bias of its own for each layer: exporters store equal tensors once, and int8 changes what a layer's bias is.

The quantizer stores a bias in steps of its layer's scales, and correction adds to it. Another reader of the same
tensor, often the zeros of a new network, would get that layer's bias.
"""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto

from pipeline.quant.graphs import WEIGHTED, constants


def give_own_constants(model: onnx.ModelProto) -> None:
    """Copy, in place, the float32 constants that a layer has as its bias and anything else reads, for each reader.

    Weights of layers stay shared: they are quantized once for all of them. Behind Identity counts as the same tensor.
    """
    graph, known = model.graph, constants(model)
    through = {node.name for node in graph.node if node.op_type == "Identity" and node.input[0] in known}
    nodes = [node for node in graph.node if node.name not in through]
    uses = Counter(known[name].name for node in nodes for name in node.input if name in known)
    biases = {known[node.input[2]].name for node in nodes if _has_constant_bias(node, known)}
    made: list[TensorProto] = []
    for node in nodes:
        for position, name in enumerate(node.input):
            tensor = known.get(name)
            if tensor is None or tensor.name not in biases or (node.op_type in WEIGHTED and position == 1):
                continue
            if tensor.data_type == TensorProto.FLOAT and (uses[tensor.name] > 1 or name != tensor.name):
                copy = TensorProto()
                copy.CopyFrom(tensor)
                copy.name = f"{node.name}.constant_{position}"
                made.append(copy)
                node.input[position] = copy.name
    graph.initializer.extend(made)
    _drop_unread(graph, through)


def _has_constant_bias(node: onnx.NodeProto, known: dict[str, TensorProto]) -> bool:
    return node.op_type in WEIGHTED and len(node.input) > 2 and node.input[2] in known


def _drop_unread(graph: onnx.GraphProto, through: set[str]) -> None:
    """Remove what only passed constants on, and constants, that nothing reads any more."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in [node for node in graph.node if node.name in through and node.output[0] not in read]:
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
