"""Keeps in float32 the layers that a build file excludes from quantization.

Where the input of a Conv, ConvTranspose or Gemm is quantized and its weights are not, ONNX Runtime quantizes the
weights while loading, with one scale for the tensor, and computes the layer in int8 without a warning. It leaves out
layers whose bias is not a constant. So the bias of such a layer is stored as int32 with a DequantizeLinear, in steps
finer than float32's.

Source: ONNX Runtime's graph transformer WeightBiasQuantization, 1.20 to 1.32; measured with `count_int8`.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import makers_of

_STEPS = 2.0**30  # for the largest magnitude in a bias
_AFFECTED = ("Conv", "ConvTranspose", "Gemm")


def keep_in_float(model: onnx.ModelProto) -> None:
    """Let the float layers of a QDQ model read their bias, or one of zeros, from a dequantizer, in place."""
    graph = model.graph
    makers = makers_of(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type in _AFFECTED]:
        maker, weights = makers.get(node.input[0]), tensors.get(node.input[1])
        if maker is None or maker.op_type != "DequantizeLinear" or weights is None:
            continue
        if len(node.input) > 2 and node.input[2] and node.input[2] not in tensors:
            continue
        outputs = _outputs(node, weights)
        given = tensors.get(node.input[2]) if len(node.input) > 2 else None
        bias = np.zeros(outputs) if given is None else numpy_helper.to_array(given).astype(np.float64)
        made = _dequantized_bias(graph, node.name, bias)
        graph.node.insert(list(graph.node).index(node), made)
        del node.input[2:]
        node.input.append(made.output[0])


def _outputs(node: onnx.NodeProto, weights: onnx.TensorProto) -> int:
    attributes = {each.name: each.i for each in node.attribute if each.type == onnx.AttributeProto.INT}
    if node.op_type == "ConvTranspose":
        return int(weights.dims[1] * attributes.get("group", 1))
    return int(weights.dims[0 if node.op_type == "Conv" or attributes.get("transB", 0) else 1])


def _dequantized_bias(
    graph: onnx.GraphProto, layer: str, bias: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> onnx.NodeProto:
    scale = np.float32(max(float(np.abs(bias).max(initial=0.0)) / _STEPS, np.finfo(np.float32).tiny))
    steps = np.rint(bias / np.float64(scale)).astype(np.int32)
    names = [f"{layer}.bias_steps", f"{layer}.bias_scale", f"{layer}.bias_zero_point"]
    values = (steps, scale, np.int32(0))
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for value, name in zip(values, names, strict=True)
    )
    return helper.make_node("DequantizeLinear", names, [f"{layer}.bias_in_float"], f"{layer}.bias_dequantizer")
