"""Builds the QDQ model from the ranges of its activations, and resolves the build file's layer numbers.

`quantizer` inserts the QDQ nodes; their ranges are decided here, their places in `placement`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.errors import ConfigError, DataError
from pipeline.onnx_models.graphs import check_model, makers_of, without_weights
from pipeline.quant import activations, pixels
from pipeline.quant.addends import put_wider_first
from pipeline.quant.attention_scores import quantize_scores
from pipeline.quant.float_layers import keep_in_float
from pipeline.quant.float_parts import float_parts
from pipeline.quant.graphs import WEIGHTED, constants, weighted_nodes
from pipeline.quant.int8_weights import round_all_to_nearest
from pipeline.quant.own_constants import give_own_constants
from pipeline.quant.placement import NORM, observed_tensors, range_sources
from pipeline.quant.qmath import Range
from pipeline.quant.quantizer import run_quantizer
from pipeline.quant.shared_ranges import share_ranges


def insert_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    per_channel: bool,
    float_layers: Collection[str] = (),
    float_activations: Collection[str] = (),
    gates_in_float: bool = False,
    scores_in_int8: bool = False,
    installed_later: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the int8 model: weights int8 symmetric (one scale per output channel or tensor), activations uint8.

    Args:
        model: float32, opset 13 or later, batch norms folded; it is not changed.
        ranges: by name for every tensor of `observed_tensors(model)`.
        per_channel: one weight scale per output channel; else one per tensor.
        float_layers: names of nodes that stay float32.
        float_activations: of `observed_tensors(model)` those that stay float32, and with them their readers.
        gates_in_float: leave what lies between convolutions and gates in float32, see `float_parts`.
        scores_in_int8: quantize what the scores of attention are made of, of which `ranges` has those of
            `score_inputs(model)`.
        installed_later: names of layers whose weights the caller has, for `install_weights`: they are not rounded here.

    Raises:
        DataError: a tensor has no range, or weights hold NaN or Inf.
    """
    parts = float_parts(model, gates=gates_in_float)
    sources = range_sources(model, parts)
    observed_as = range_sources(model)  # where more is in float, fewer operators pass ranges on
    unquantized = {name for name in sources if observed_as[name] in float_activations}
    excluded = {*float_layers, *_island(model, unquantized), *_stacked_products(model), *parts.nodes}
    data = _ranges_of_activations(model, ranges, sources, observed_as)
    data |= {name: Range(-1.0, 1.0) for name in parts.outputs}  # any: their quantizers are removed
    float32 = _with_shapes(model)
    give_own_constants(float32)
    if per_channel:
        _norms_to_convolutions(float32, excluded)
    quantized = run_quantizer(float32, data, excluded | pixels.border_nodes(model), excluded, per_channel=per_channel)
    _remove_quantizers(quantized.graph, unquantized | parts.outputs)
    _read_unquantized(quantized.graph, parts.nodes, float32)
    if scores_in_int8:
        quantize_scores(quantized, model, ranges, {*float_layers, *float_activations})
    keep_in_float(quantized)
    activations.remove_redundant(quantized, excluded)
    put_wider_first(quantized)
    round_all_to_nearest(quantized, float32, installed_later)
    if pixels.are_input_of(quantized):
        pixels.take_uint8(quantized)
    quantized.producer_name = "int8-classifier-pipeline"
    check_model(quantized)
    return quantized


def _ranges_of_activations(
    model: onnx.ModelProto, ranges: Mapping[str, Range], sources: Mapping[str, str], observed_as: Mapping[str, str]
) -> dict[str, Range]:
    """Return the range of every activation that is quantized.

    Args:
        sources: by activation, the one whose values set its range.
        observed_as: the same of the model with all of its activations in int8, as calibration observed it.

    Raises:
        DataError: a tensor has no range.
    """
    missing = [name for name in observed_tensors(model) if name not in ranges]
    if missing:
        raise DataError(f"calibration has no range for {len(missing)} tensors (first: {missing[0]}); build again")
    covered = activations.covered_ranges(model, ranges)
    own = {name: covered[source if source in covered else observed_as[source]] for name, source in sources.items()}
    return share_ranges(model, sources, own)


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the shapes that are inferred; without the weights, of which inference would make three."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for field in ("value_info", "output"):
        del getattr(found.graph, field)[:]
        getattr(found.graph, field).extend(getattr(inferred, field))
    return found


def _stacked_products(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the MatMuls by a stack of constant matrices: ONNX Runtime has no int8 kernel for one scale a column."""
    known = constants(model)
    for node in model.graph.node:
        if node.op_type == "MatMul" and any(len(known[name].dims) > 2 for name in node.input if name in known):
            yield node.name


def _island(model: onnx.ModelProto, unquantized: Collection[str]) -> Iterator[str]:
    """Yield the nodes that compute in float because some activations stay float: those that read or forward them."""
    for node in model.graph.node:
        makes = node.output[0] in unquantized and node.op_type not in (*WEIGHTED, NORM)
        if makes or any(name in unquantized for name in node.input):
            yield node.name


def _remove_quantizers(graph: onnx.GraphProto, unquantized: Collection[str]) -> None:
    """Let the readers of some activations bypass their quantizers, in place."""
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


def _read_unquantized(graph: onnx.GraphProto, nodes: Collection[str], float32: onnx.ModelProto) -> None:
    """Let some nodes read activations, and constants, as they were before quantizers that others need, in place.

    But for what a convolution writes: one whose output is read in float too is computed in float by ONNX Runtime.
    """
    makers = makers_of(graph)
    stored, known = {tensor.name for tensor in graph.initializer}, constants(float32)
    before = {node.name: node for node in float32.graph.node}
    for node in graph.node:
        for position, name in enumerate(node.input if node.name in nodes else ()):
            dequantizer = makers.get(name)
            if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
                continue
            given = before[node.name].input[position]
            if given in known:
                if given not in stored:
                    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(known[given]), given))
                    stored.add(given)
                node.input[position] = given
                continue
            source = makers.get(given)
            if source is None or source.op_type != "Conv":
                node.input[position] = given


def _norms_to_convolutions(model: onnx.ModelProto, float_layers: Collection[str]) -> None:
    """Replace the norms that cannot be folded into a convolution by depthwise 1x1 convolutions, in place.

    Such norms follow an addition, as in iResNet. No runtime here computes a norm in int8, and with one scale for each
    channel a depthwise 1x1 weight is exact in int8. Measured on iResNet-50: ONNX Runtime 2.3 times as fast, OpenVINO
    the same.
    """
    graph = model.graph
    known = constants(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        statistics = [known[name] for name in node.input[1:] if name in known]
        convertible = node.op_type == NORM and len(statistics) == 4 and ranks.get(node.input[0]) == 4
        if not convertible or node.name in float_layers:
            continue
        scale, offset, mean, variance = (numpy_helper.to_array(tensor) for tensor in statistics)
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        made = {f"{node.name}.weight": factor.reshape(-1, 1, 1, 1), f"{node.name}.bias": offset - mean * factor}
        graph.initializer.extend(
            numpy_helper.from_array(value.astype(np.float32), name) for name, value in made.items()
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

    Where no node has a name, it is a pattern such as `/layer1/*`: every convolution, or every layer, that it fits.

    Raises:
        ConfigError: there is no such layer.
    """
    weighted = [node.name for node in weighted_nodes(model)]
    convs = [node.name for node in weighted_nodes(model) if node.op_type == "Conv"]
    everything = [node.name for node in model.graph.node]
    found: set[str] = set()
    for key, wanted, numbered, fitting in (
        ("skip_conv_layers", convolutions, convs, convs),
        ("exclude_layers", layers, weighted, everything),
    ):
        for layer in wanted:
            if isinstance(layer, int):
                meant = numbered[layer : layer + 1]
            else:
                meant = [layer] if layer in everything else [name for name in fitting if fnmatchcase(name, layer)]
            if not meant:
                near = difflib.get_close_matches(str(layer), everything, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"numbers go from 0 to {len(numbered) - 1}"
                raise ConfigError(f"backend.quantize.{key}: the model has no layer {layer!r}; {hint}")
            found.update(meant)
    return frozenset(found)


def count_quantized(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many weighted operators of a QDQ model read quantized inputs, and how many there are."""
    producers = makers_of(model.graph)

    def is_quantized(node: onnx.NodeProto) -> bool:
        return all(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input[:2])

    weighted = list(weighted_nodes(model))
    return {"weighted": len(weighted), "quantized": sum(map(is_quantized, weighted))}
