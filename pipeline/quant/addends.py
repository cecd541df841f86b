"""Additions of two convolutions: which of them runtimes add up before they round it.

OpenVINO computes such an addition within one of the convolutions, whose output it then does not round, and rounds the
output of the other. It takes the convolution of the addition's first input where it can. The noise of either is that of
its step, so the one with the wider step comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from pipeline.onnx_models.graphs import makers_of
from pipeline.quant.graphs import constants


def put_wider_first(model: onnx.ModelProto) -> None:
    """Let each Add of two quantized convolutions in a QDQ model read the one with the wider step first, in place.

    Additions give the same values in either order.
    """
    known, makers = constants(model), makers_of(model.graph)
    for node in model.graph.node:
        if node.op_type == "Add" and len(node.input) == 2:
            first, second = (_step_of_convolution(name, makers, known) for name in node.input)
            if first is not None and second is not None and first < second:
                node.input[0], node.input[1] = node.input[1], node.input[0]


def _step_of_convolution(
    name: str, makers: Mapping[str, onnx.NodeProto], known: Mapping[str, onnx.TensorProto]
) -> float | None:
    """Return the step that a convolution's output was rounded to; None of anything else."""
    dequantizer = makers.get(name)
    quantizer = makers.get(dequantizer.input[0]) if dequantizer is not None and len(dequantizer.input) > 1 else None
    if dequantizer is None or quantizer is None or quantizer.op_type != "QuantizeLinear":
        return None
    source = makers.get(quantizer.input[0])
    is_convolution = source is not None and source.op_type == "Conv"
    return float(numpy_helper.to_array(known[quantizer.input[1]])) if is_convolution else None
