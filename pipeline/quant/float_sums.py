"""Keeps the sums of a residual stream in float32 beside convolutions that stay in int8.

The blocks of a ResNet add to one stream after the other, and every block rounds it again. What the additions read and
give each other stays float32 here; the convolutions read what a quantizer makes of it, in int8, as before. OpenVINO
computes such an addition within the convolution before it, in float32, so that only memory traffic grows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx
from onnx import helper

from pipeline.onnx_models.graphs import makers_of, readers_of
from pipeline.quant.graphs import constants

_SHARE = 0.5  # of the noise of a stream's quantizers, what its additions pass on; convolutions pass on the rest

Nodes = Mapping[str, onnx.NodeProto]


def find_streams(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Return the additions of each residual stream of a float32 model, by name of its first sum, in graph order.

    An addition counts that reads the output of a convolution which nothing else reads. It goes on with the stream of
    another one whose sum it reads, perhaps behind a ReLU.
    """
    makers, readers, known = makers_of(model.graph), readers_of(model.graph), constants(model)
    outputs = {value.name for value in model.graph.output}
    stream_of: dict[str, str] = {}  # by name of an addition
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type != "Add" or set(node.input) & known.keys() or node.output[0] in outputs:
            continue
        if not any(name in makers and _is_own(makers[name], readers) for name in node.input):
            continue
        sums = [_sum_behind(name, makers) for name in node.input]
        before = [stream_of[each.name] for each in sums if each is not None and each.name in stream_of]
        stream = before[0] if before else node.output[0]
        stream_of[node.name] = stream
        found.setdefault(stream, []).append(node.name)
    return found


def find_joins(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Return of each residual stream that begins with the sum of two convolutions that addition, by name of its sum.

    It is what a stream costs most: a runtime rounds one of the two convolutions, or both. Streams of one addition are
    left out, since that is all of them.
    """
    nodes, makers = {node.name: node for node in model.graph.node}, makers_of(model.graph)
    return {
        name: additions[:1]
        for name, additions in find_streams(model).items()
        if len(additions) > 1
        and all(read in makers and makers[read].op_type == "Conv" for read in nodes[additions[0]].input)
    }


def _is_own(node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> bool:
    return node.op_type == "Conv" and len(readers[node.output[0]]) == 1


def _sum_behind(name: str, makers: Nodes) -> onnx.NodeProto | None:
    """Return the addition whose sum an activation is, as it is or behind a ReLU; None of any other activation."""
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Relu":
        maker = makers.get(maker.input[0])
    return maker if maker is not None and maker.op_type == "Add" else None


def convolutions_added(model: onnx.ModelProto, additions: Collection[str]) -> frozenset[str]:
    """Return the outputs of convolutions that some additions read."""
    makers = makers_of(model.graph)
    read = [name for node in model.graph.node if node.name in additions for name in node.input]
    return frozenset(name for name in read if name in makers and makers[name].op_type == "Conv")


def gain_of(
    model: onnx.ModelProto, additions: Collection[str], costs: Mapping[str, float], exact: Collection[str]
) -> float:
    """Return about how much lower the divergence is, nats per image, with the sums of some additions in float32.

    Args:
        model: float32.
        additions: of one stream.
        costs: by activation, the divergence that its quantizer causes.
        exact: activations that are not rounded anyway, see `addends.added_within`.
    """
    makers = makers_of(model.graph)
    gain = sum(costs.get(name, 0.0) for name in convolutions_added(model, additions) if name not in exact)
    for node in [node for node in model.graph.node if node.name in additions]:
        for name in node.input:
            summed = _sum_behind(name, makers)
            if summed is not None and summed.name in additions:
                gain += _SHARE * costs.get(name, 0.0)
    return gain


def keep_sums_in_float(int8: onnx.ModelProto, float32: onnx.ModelProto, additions: Collection[str]) -> None:
    """Let additions of a QDQ model read convolutions, and each other's sums, without quantizers between, in place.

    Args:
        int8: what `qdq.insert_qdq` made of `float32`.
        additions: names of nodes, as of `find_streams`.
    """
    for name in additions:
        node = next(each for each in int8.graph.node if each.name == name)
        for position, read in enumerate(node.input):
            makers, readers = makers_of(int8.graph), readers_of(int8.graph)
            dequantizer = makers.get(read)
            quantizer = _quantizer_before(dequantizer, makers)
            if dequantizer is None or quantizer is None:
                continue
            source = quantizer.input[0]
            maker, summed = makers.get(source), _sum_behind(source, makers)
            if maker is not None and maker.op_type == "Conv" and len(readers[read]) == 1:
                node.input[position] = source
                int8.graph.node.remove(quantizer)
                int8.graph.node.remove(dequantizer)
            elif summed is not None and summed.name in additions:
                if summed is maker:
                    _restore_relu(int8, float32, summed)
                node.input[position] = source


def _quantizer_before(node: onnx.NodeProto | None, makers: Nodes) -> onnx.NodeProto | None:
    """Return the quantizer that a dequantizer reads; None of any other node."""
    maker = makers.get(node.input[0]) if node is not None and node.op_type == "DequantizeLinear" else None
    return maker if maker is not None and maker.op_type == "QuantizeLinear" else None


def _restore_relu(int8: onnx.ModelProto, float32: onnx.ModelProto, addition: onnx.NodeProto) -> None:
    """Put the ReLU behind an addition back that was left out because a quantizer clips as it does."""
    relu = makers_of(float32.graph).get(addition.output[0])
    if relu is None or relu.op_type != "Relu":  # the sum is read as it is
        return
    addition.output[0] = relu.input[0]
    restored = helper.make_node("Relu", [relu.input[0]], [relu.output[0]], relu.name)
    int8.graph.node.insert(list(int8.graph.node).index(addition) + 1, restored)
