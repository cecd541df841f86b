"""Runs the quantizer of `onnxruntime.quantization`, which inserts QDQ nodes, with ranges and scales decided here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_quant_output_suffix

from pipeline.onnx_models.graphs import attributes_of
from pipeline.quant.graphs import MATRIX, WEIGHTED, constants
from pipeline.quant.int8_weights import scales_of
from pipeline.quant.layers import weights_of
from pipeline.quant.placement import NORM, QUANTIZED_OPS
from pipeline.quant.qmath import Range
from pipeline.quant.scales import check_finite, fit_to_bias
from pipeline.runtimes.sessions import tensor_bytes

_LEVELS = 255  # steps of a uint8 activation
_LARGE = 1 << 20  # bytes of weights that the quantizer is spared


def run_quantizer(
    float32: onnx.ModelProto,
    data: Mapping[str, Range],
    in_float: Collection[str],
    float_layers: Collection[str],
    *,
    per_channel: bool,
) -> onnx.ModelProto:
    """Return the model with a pair of Quantize- and DequantizeLinear at every range and weight.

    Args:
        float32: with inferred shapes.
        data: the range of each activation.
        in_float: names of nodes that stay float32.
        float_layers: those of them that are layers.
    """
    prepared = _with_stand_ins(float32)
    quantizer = QDQQuantizer(
        prepared,
        per_channel,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, {name: _tensor_data(each) for name, each in data.items()}),
        [],
        [node.name for node in prepared.graph.node if _stays_float(node, data, float_layers) or node.name in in_float],
        [op for op in QUANTIZED_OPS if op != NORM],
        {
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "OpTypesToExcludeOutputQuantization": list(MATRIX),
            "QDQKeepRemovableActivations": True,  # else it removes those too that no quantizer replaces
            "QDQDisableWeightAdjustForInt32Bias": True,  # the scales below fit their biases
            "TensorQuantOverrides": _weight_scales(float32, data, float_layers, per_channel=per_channel),
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    weights = {tensor.name: tensor for tensor in float32.graph.initializer}
    for tensor in quantized.graph.initializer:
        if tensor.name in weights and tensor.dims != weights[tensor.name].dims:  # of a layer that stays in float
            tensor.CopyFrom(weights[tensor.name])
    return quantized


def name_of_levels(activation: str) -> str:
    """Return the name of the tensor that holds the levels of an activation, where `run_quantizer` quantized it."""
    name: str = add_quant_output_suffix(activation)
    return name


def _with_stand_ins(float32: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy for the quantizer with one zero for each output in the place of a layer's large weights.

    The quantizer takes four times their memory to round them with the scales it is given; they are rounded anew anyway.
    """
    light = onnx.ModelProto(ir_version=float32.ir_version, opset_import=float32.opset_import)
    graph = light.graph
    graph.name = float32.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(float32.graph, field))
    uses = Counter(name for node in graph.node for name in node.input)
    layers = {node.input[1]: node for node in graph.node if node.op_type in WEIGHTED and uses[node.input[1]] == 1}
    for tensor in float32.graph.initializer:
        node = layers.get(tensor.name)
        rank = len(tensor.dims)
        if node is None or tensor_bytes(tensor) < _LARGE or (rank != 2 and node.op_type != "Conv"):
            graph.initializer.append(tensor)
            continue
        axis = 0 if node.op_type == "Conv" or attributes_of(node).get("transB", 0) else 1
        zeros = np.zeros([size if at == axis else 1 for at, size in enumerate(tensor.dims)], np.float32)
        graph.initializer.append(numpy_helper.from_array(zeros, tensor.name))
    return light


def _weight_scales(
    model: onnx.ModelProto, ranges: Mapping[str, Range], float_layers: Collection[str], *, per_channel: bool
) -> dict[str, list[dict[str, Any]]]:
    """Return the scales of all int8 weights as `onnxruntime.quantization` takes them: by tensor, per output channel.

    Raises:
        DataError: weights or a bias hold NaN or Inf.
    """
    known = constants(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    chosen: dict[str, tuple[int, np.ndarray]] = {}
    for weights in weights_of(model):
        node = nodes[weights.layer]
        # `onnxruntime.quantization` leaves weights that pass through Identity in float.
        if weights.layer in float_layers or node.input[0] not in ranges or weights.tensor not in stored:
            continue
        bias = None
        if len(node.input) > 2 and node.input[2] in known:
            beta = np.float32(attributes_of(node).get("beta", 1.0))
            bias = numpy_helper.to_array(known[node.input[2]]).reshape(-1) * beta
            bias = np.broadcast_to(bias, len(weights.matrix)) if bias.size in (1, len(weights.matrix)) else None
        check_finite(node.name, weights.matrix, bias)
        scales = scales_of(weights.matrix, weights.pairs, per_channel=per_channel)
        scales = fit_to_bias(scales, weights.matrix, bias, _scale(ranges[node.input[0]]))
        axis, shared = weights.output_axis, chosen.get(weights.tensor)
        if shared is not None and shared[0] == axis:
            scales = np.maximum(scales, shared[1])
        chosen[weights.tensor] = axis, scales
    return {name: _overrides(scales, axis if per_channel else None) for name, (axis, scales) in chosen.items()}


def _overrides(scales: np.ndarray, axis: int | None) -> list[dict[str, Any]]:
    along = {} if axis is None else {"axis": axis}
    return [{**along, "scale": scale, "zero_point": np.int8(0)} for scale in scales]


def _stays_float(node: onnx.NodeProto, ranged: Collection[str], float_layers: Collection[str]) -> bool:
    return node.name in float_layers or (node.output[0] not in ranged and node.op_type not in MATRIX)


def _quantized_range(covered: Range) -> Range:
    """Return the range that a quantizer uses; for a tensor that is zero everywhere, any will do."""
    return covered if covered.high > covered.low else Range(0.0, float(_LEVELS))


def _scale(covered: Range) -> float:
    taken = _quantized_range(covered)
    scale = (taken.high - taken.low) / _LEVELS
    return scale if scale >= np.finfo(np.float32).tiny else 1.0  # as in onnxruntime.quantization


def _tensor_data(covered: Range) -> TensorData:
    taken = _quantized_range(covered)
    return TensorData(lowest=np.float32(taken.low), highest=np.float32(taken.high))
