"""About how much time changes of an int8 model take, told from what they compute and move beside it.

A search tries first what buys most for its time; how fast a model is in the end is measured. In shares of the time of
the plain int8 model.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx

from pipeline.quant.graphs import activation_shapes, constants, work_of_layers
from pipeline.quant.placement import range_sources
from pipeline.quant.splitting import Split, find_place

# Multiply-accumulates of int8 in whose time a value of a residual stream goes through memory in float32. From resnet18
# and resnet50 in OpenVINO, with AVX-512 VNNI.
_MOVED = 120
_IN_FLOAT = 3.0  # of a layer's time in int8, what it takes more in float32, with VNNI
_LEAST = 1e-4  # of any change: shapes may not be known


def of_split(model: onnx.ModelProto, name: str, split: Split) -> float:
    """Return the share that splitting an activation takes: the layers that write and read it compute more channels.

    Args:
        model: float32.
        name: of an activation that can be split.
    """
    place, work, known = find_place(model, name), work_of_layers(model), constants(model)
    assert place is not None, "the caller asked whether it can be split"
    nodes = {node.name: node for node in model.graph.node}
    channels = int(known[nodes[place.writer].input[1]].dims[0])
    more = sum(work[layer] for layer in (place.writer, *place.readers)) * len(split.channels) / channels
    shapes = activation_shapes(model)
    for tensor in {tensor for _, tensor in place.added}:  # the sum of the parts
        more += math.prod(shapes.get(tensor, ())[1:]) * (channels + len(split.channels))
    return max(_LEAST, more / max(1, sum(work.values())))


def of_sums(model: onnx.ModelProto, additions: Collection[str]) -> float:
    """Return the share that the sums of some additions, names of nodes, take in float32.

    Args:
        model: float32.
    """
    shapes = activation_shapes(model)
    summed = [node.output[0] for node in model.graph.node if node.name in additions]
    moved = sum(math.prod(shapes.get(name, ())[1:]) for name in summed)
    return max(_LEAST, _MOVED * moved / max(1, sum(work_of_layers(model).values())))


def of_float(model: onnx.ModelProto, name: str) -> float:
    """Return the share that an activation in float32 takes: the layers that read it compute in float32 too.

    Args:
        model: float32.
    """
    work, sources = work_of_layers(model), range_sources(model)  # pools pass the range of what they read on
    read = {tensor for tensor, source in sources.items() if source == name}
    readers = [node.name for node in model.graph.node if read.intersection(node.input) and node.name in work]
    return max(_LEAST, _IN_FLOAT * sum(work[layer] for layer in readers) / max(1, sum(work.values())))
