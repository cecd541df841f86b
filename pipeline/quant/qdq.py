"""Where quantizers stand: which tensors to observe, and the QDQ model from their ranges.

QDQ nodes are inserted by `onnxruntime.quantization`; which ranges it gets is decided here. The placement is ONNX
Runtime's: everything between the input and the classifier is quantized on both sides, residual additions and pooling
included, since it fuses nothing less. The classifier's own output stays float32: eight bits would tie the best answers.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from pipeline.errors import ConfigError, DataError
from pipeline.quant import pixels
from pipeline.quant.graphs import constants
from pipeline.quant.int8_weights import bounded_scales, round_all_to_nearest
from pipeline.quant.qmath import Range

# Operators that pass values on unchanged, or pick among them: their output has the scale of their input.
_SAME_SCALE = frozenset(
    {"MaxPool", "AveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"}
)
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_MATRIX = ("Gemm", "MatMul")
WEIGHTED = ("Conv", *_MATRIX)
_NORM = "BatchNormalization"
QUANTIZED_OPS = (
    *("Conv", _NORM, "Relu", "Clip", "Add", "Mul", "Concat", "Pad", "GlobalAveragePool", "ReduceMean"),
    *_MATRIX,
    *sorted(_SAME_SCALE - {"Identity"}),
)


def range_sources(model: onnx.ModelProto) -> dict[str, str]:
    """Return for each float activation the activation whose values set its range.

    A convolution that only a ReLU reads takes the ReLU's range (the quantizer's lower bound then does the ReLU's work),
    and an operator that only moves values takes its input's. All others are their own source, also those that a float
    operator (Sigmoid, LayerNormalization, ...) makes for a quantized one to read. The classifier's output and what
    follows it are left out: they stay float32.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants.update(node.output[0] for node in graph.node if node.op_type == "Constant")
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    border = pixels.border_nodes(model)
    read = {name for node in graph.node if node.name not in border for name in node.input}
    sources = {value.name: value.name for value in graph.input if value.name in read - constants}
    float_or_constant = outputs | constants | _shape_arithmetic(graph) | {""}
    for node in graph.node:
        makes_float = node.op_type == "Gemm" or node.output[0] in float_or_constant
        if node.name in border or node.op_type not in QUANTIZED_OPS or (makes_float and node.op_type not in _MATRIX):
            continue
        if node.op_type not in _ACTIVATIONS:  # which take what they get
            sources.update((name, name) for name in node.input if name not in float_or_constant | sources.keys())
        if makes_float:
            continue
        inherits = node.op_type in _SAME_SCALE and node.input[0] in sources
        sources[node.output[0]] = sources[node.input[0]] if inherits else node.output[0]
    for node in graph.node:
        source, target = node.input[0] if node.input else "", node.output[0]
        if node.op_type in _ACTIVATIONS and len(readers[source]) == 1 and {source, target} <= sources.keys():
            sources[source] = target
    return sources


def _shape_arithmetic(graph: onnx.GraphProto) -> set[str]:
    """Return the integer tensors: what is computed from shapes and constants, by operators that activations use too."""
    integers = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64}
    for node in graph.node:
        if node.op_type == "Shape" or (node.input and node.input[0] in integers):
            integers.update(node.output)
    return integers


def observed_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the activations that calibration has to observe, in graph order, the model's input first."""
    sources = range_sources(model)
    return [name for name in sources if name in set(sources.values())]


def layer_inputs(model: onnx.ModelProto) -> list[str]:
    """Return the activations that convolutions and Gemms read, each once, in graph order; channels are their axis 1."""
    known = constants(model)
    read = dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm"))
    return [name for name in read if name not in known]


def classifier_inputs(model: onnx.ModelProto) -> frozenset[str]:
    """Return the observed activation that only the classifier reads, if there is one; the classifier is the last layer.

    Left in float32 (with the classifier, some thousandth of a ResNet's work), it loses nothing next to the answers.
    """
    sources = range_sources(model)
    weighted = list(_weighted_nodes(model))
    if not weighted or weighted[-1].op_type not in _MATRIX:
        return frozenset()
    source = sources.get(weighted[-1].input[0])
    shared = {name for name, each in sources.items() if each == source}
    readers = [node for node in model.graph.node if shared.intersection(node.input)]
    only = all(node is weighted[-1] or node.op_type in (*_SAME_SCALE, *_ACTIVATIONS) for node in readers)
    return frozenset({source} if source is not None and only else ())


def insert_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    per_channel: bool,
    float_layers: Collection[str] = (),
    float_activations: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the int8 model: weights int8 symmetric (one scale an output channel, or one a tensor), activations uint8.

    Args:
        model: float32, opset 13 or later, batch norms folded; it is not changed.
        ranges: by name for every tensor of `observed_tensors(model)`.
        per_channel: one weight scale an output channel; else one a tensor.
        float_layers: names of nodes that stay float32.
        float_activations: of `observed_tensors(model)` those that stay float32, and with them their readers.

    Raises:
        DataError: a tensor has no range.
    """
    wanted = observed_tensors(model)
    missing = [name for name in wanted if name not in ranges]
    if missing:
        raise DataError(f"calibration has no range for {len(missing)} tensors (first: {missing[0]}); build again")
    sources = range_sources(model)
    data = {name: _tensor_data(ranges[source]) for name, source in sources.items()}
    unquantized = {name for name, source in sources.items() if source in float_activations}
    border = pixels.border_nodes(model)
    excluded = {*float_layers, *_island(model, unquantized)}
    prepared = onnx.shape_inference.infer_shapes(model)
    if per_channel:
        _norms_to_convolutions(prepared, excluded)
    float32 = onnx.ModelProto()
    float32.CopyFrom(prepared)  # the quantizer takes its model apart
    quantizer = QDQQuantizer(
        prepared,
        per_channel,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        [node.name for node in prepared.graph.node if _stays_float(node, data, excluded) or node.name in border],
        [op for op in QUANTIZED_OPS if op != _NORM],
        {
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "OpTypesToExcludeOutputQuantization": list(_MATRIX),
            "TensorQuantOverrides": _weight_scales(prepared, per_channel),
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    _remove_quantizers(quantized.graph, unquantized)
    round_all_to_nearest(quantized, float32)
    if pixels.are_input_of(quantized):
        pixels.take_uint8(quantized)
    quantized.producer_name = "int8-classifier-pipeline"
    onnx.checker.check_model(quantized)
    return quantized


def _weight_scales(model: onnx.ModelProto, per_channel: bool) -> dict[str, list[dict[str, object]]]:
    """Return the scales of all weights as `onnxruntime.quantization` takes them."""
    found: dict[str, list[dict[str, object]]] = {}
    stored = {tensor.name for tensor in model.graph.initializer}
    for name, (scales, axis) in bounded_scales(model, per_channel=per_channel).items():
        if name not in stored:  # behind Identity: `onnxruntime.quantization` leaves it in float
            continue
        along: dict[str, object] = {"axis": axis} if per_channel else {}
        found[name] = [{**along, "scale": scale, "zero_point": np.int8(0)} for scale in scales]
    return found


def _island(model: onnx.ModelProto, unquantized: Collection[str]) -> Iterator[str]:
    """Yield the nodes that compute in float where some activations stay float: those that read or pass them on."""
    for node in model.graph.node:
        makes = node.output[0] in unquantized and node.op_type not in (*WEIGHTED, _NORM)
        if makes or any(name in unquantized for name in node.input):
            yield node.name


def _remove_quantizers(graph: onnx.GraphProto, unquantized: Collection[str]) -> None:
    """Let the readers of some activations read them as they were before their quantizers, in place."""
    dequantizers = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    removed = []
    for quantizer in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in unquantized]:
        dequantizer = dequantizers[quantizer.output[0]]
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name == dequantizer.output[0]:
                    node.input[position] = quantizer.input[0]
        removed += [quantizer, dequantizer]
    for node in removed:
        graph.node.remove(node)


def _stays_float(node: onnx.NodeProto, ranged: Collection[str], float_layers: Collection[str]) -> bool:
    return node.name in float_layers or (node.output[0] not in ranged and node.op_type not in _MATRIX)


def _norms_to_convolutions(model: onnx.ModelProto, float_layers: Collection[str]) -> None:
    """Replace the norms that no convolution could take in by 1x1 convolutions of each channel by itself, in place.

    Those after an addition, as in iResNet. No runtime here computes a norm in int8, and a weight that has its channel
    to itself is exact in int8. Measured on iResNet-50: ONNX Runtime 2.3 times as fast, OpenVINO the same.
    """
    graph = model.graph
    known = constants(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        statistics = [known[name] for name in node.input[1:] if name in known]
        convertible = node.op_type == _NORM and len(statistics) == 4 and ranks.get(node.input[0]) == 4
        if not convertible or node.name in float_layers:
            continue
        scale, offset, mean, variance = (onnx.numpy_helper.to_array(tensor) for tensor in statistics)
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        made = {f"{node.name}.weight": factor.reshape(-1, 1, 1, 1), f"{node.name}.bias": offset - mean * factor}
        graph.initializer.extend(
            onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in made.items()
        )
        node.CopyFrom(
            onnx.helper.make_node(
                "Conv", [node.input[0], *made], node.output[:1], node.name, group=factor.size, kernel_shape=[1, 1]
            )
        )


def find_layers(
    model: onnx.ModelProto, convolutions: Sequence[int | str], layers: Sequence[int | str]
) -> frozenset[str]:
    """Return the names of the nodes that `skip_conv_layers` and `exclude_layers` mean.

    Args:
        model: the float32 model.
        convolutions: names, or numbers among the convolutions in graph order, from 0.
        layers: names, or numbers among convolutions and fully connected layers, from 0.

    Raises:
        ConfigError: there is no such layer.
    """
    weighted = [node.name for node in _weighted_nodes(model)]
    convs = [node.name for node in _weighted_nodes(model) if node.op_type == "Conv"]
    everything = [node.name for node in model.graph.node]
    found = set()
    for key, wanted, numbered in (("skip_conv_layers", convolutions, convs), ("exclude_layers", layers, weighted)):
        for layer in wanted:
            if isinstance(layer, int) and layer < len(numbered):
                found.add(numbered[layer])
            elif isinstance(layer, str) and layer in everything:
                found.add(layer)
            else:
                near = difflib.get_close_matches(str(layer), everything, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"numbers go from 0 to {len(numbered) - 1}"
                raise ConfigError(f"backend.quantize.{key}: the model has no layer {layer!r}; {hint}")
    return frozenset(found)


def _tensor_data(covered: Range) -> TensorData:
    low, high = (covered.low, covered.high) if covered.high > covered.low else (0.0, 255.0)
    return TensorData(lowest=np.float32(low), highest=np.float32(high))


def count_quantized(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many weighted operators of a QDQ model read quantized inputs, and how many there are."""
    producers = {output: node for node in model.graph.node for output in node.output}

    def is_quantized(node: onnx.NodeProto) -> bool:
        return all(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input[:2])

    weighted = list(_weighted_nodes(model))
    return {"weighted": len(weighted), "quantized": sum(map(is_quantized, weighted))}


def _weighted_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (node for node in model.graph.node if node.op_type in WEIGHTED)
