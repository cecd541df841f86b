"""Scores of attention, queries times keys, in int8 between operators in float32.

The product reads what the layers before it write, after moves and a factor, and its sums go into a Softmax in float32.
Rounded queries and keys add little to the noise of the layers that make them, and OpenVINO computes attention in two
thirds of the time. It does so where both are signed without a zero point; with one it takes as long as in float32.

x86 CPUs without VNNI add two neighbouring products in 16 bits, of a value that is shifted to 0..255 and a signed one.
So keys have half of the steps: 255 * 64 * 2 is below 2^15. Sums of keys beyond the range that
calibration saw may be cut off there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import makers_of, readers_of
from pipeline.quant.float_parts import float_parts, is_product
from pipeline.quant.graphs import constants
from pipeline.quant.qmath import Range

_STEPS = (127, 64)  # from zero to the end of the range: of queries, and of keys
_BETWEEN = frozenset({"Mul", "Div", "Add", "Reshape"})  # what may stand between the product and the Softmax
_FARTHEST = 6  # operators


def find_scores(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the products of two activations that become the scores of attention, in graph order."""
    known, readers, in_float = constants(model), readers_of(model.graph), float_parts(model).nodes
    return [
        node
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.name in in_float
        and is_product(node, known)
        and _becomes_softmax(node.output[0], readers, _FARTHEST)
    ]


def score_inputs(model: onnx.ModelProto) -> list[str]:
    """Return the activations that `find_scores` multiply, in graph order: their ranges have to be observed."""
    return list(dict.fromkeys(name for node in find_scores(model) for name in node.input))


def quantize_scores(
    int8: onnx.ModelProto, float32: onnx.ModelProto, ranges: Mapping[str, Range], left_out: Collection[str]
) -> None:
    """Put a quantizer on what the scores of attention are made of, in place.

    Args:
        int8: the model made of `float32`.
        ranges: of at least some of `score_inputs(float32)`; scores without one of both stay float32.
        left_out: names of nodes and activations that stay float32.
    """
    scores = {node.name: node for node in find_scores(float32)}
    graph, makers = int8.graph, makers_of(int8.graph)
    for node in [node for node in graph.node if node.name in scores]:
        given = scores[node.name].input
        usable = list(node.input) == list(given) and all(name in ranges and name in makers for name in given)
        if not usable or {node.name, *given} & set(left_out):
            continue
        for position, (name, steps) in enumerate(zip(given, _STEPS, strict=True)):
            pair = list(_quantizer(int8, name, f"{node.name}.{position}", ranges[name], steps))
            at = list(graph.node).index(node)
            for each in reversed(pair):
                graph.node.insert(at, each)
            node.input[position] = pair[-1].output[0]


def _becomes_softmax(name: str, readers: Mapping[str, Sequence[onnx.NodeProto]], farthest: int) -> bool:
    return any(
        node.op_type == "Softmax"
        or (farthest and node.op_type in _BETWEEN and _becomes_softmax(node.output[0], readers, farthest - 1))
        for node in readers.get(name, ())
    )


def _quantizer(model: onnx.ModelProto, name: str, prefix: str, covered: Range, steps: int) -> Iterator[onnx.NodeProto]:
    """Yield the two nodes of a quantizer to int8 without a zero point."""
    scale = np.float32(max(-covered.low, covered.high) / steps)
    scale = scale if scale >= np.finfo(np.float32).tiny else np.float32(1.0)
    parameters = [f"{prefix}.scale", f"{prefix}.zero_point"]
    for tensor, value in zip(parameters, (scale, np.int8(0)), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), tensor))
    levels, values = f"{prefix}.levels", f"{prefix}.values"
    yield helper.make_node("QuantizeLinear", [name, *parameters], [levels], f"{prefix}.quantizer")
    yield helper.make_node("DequantizeLinear", [levels, *parameters], [values], f"{prefix}.dequantizer")
