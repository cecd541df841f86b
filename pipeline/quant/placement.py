"""Where quantizers are placed: which tensors are observed, which range each tensor uses, and what stays in float32.

The placement is ONNX Runtime's: between the input and the classifier, inputs and outputs of every operator are
quantized, residual additions and pooling included, since its fusions need that. The classifier's output stays float32:
with 8 bits the best classes would tie.
"""

from __future__ import annotations

import onnx

from pipeline.onnx_models.graphs import makers_of, readers_of
from pipeline.quant import pixels
from pipeline.quant.classifier import SHAPE_READERS, find_classifier, tail_tensors
from pipeline.quant.float_parts import FloatParts, float_parts, is_product
from pipeline.quant.graphs import MATRIX, WEIGHTED, constants, not_float32, work_of_layers

# Operators that pass values on unchanged, or pick among them: their output has the scale of their input.
SAME_SCALE = frozenset(
    {
        *("MaxPool", "AveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"),
        *("Slice", "Split", "DepthToSpace", "SpaceToDepth"),
    }
)
# Those of them that change no value and have one output: clipping before them is the same as clipping after them.
_MOVES = SAME_SCALE - {"AveragePool", "Split"}
ACTIVATIONS = frozenset({"Relu", "Clip"})
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax"})
NORM = "BatchNormalization"
QUANTIZED_OPS = (
    *("Conv", NORM, "Relu", "Clip", "Add", "Mul", "Concat", "Pad", "GlobalAveragePool", "ReduceMean"),
    *MATRIX,
    *sorted(SAME_SCALE - {"Identity"}),
)
# A convolution over the whole feature map may be the classifier, with the pooling after it. Beyond this share of the
# network's work it stays in int8: float32 would cost more time than the gain in accuracy is worth.
_FLOAT_SHARE = 0.05


def range_sources(model: onnx.ModelProto, parts: FloatParts | None = None) -> dict[str, str]:
    """Return for each float32 activation the activation whose values set its range.

    A tensor that only a ReLU or Clip reads uses the range of that operator's output, which clips the rest anyway. The
    output of an operator that only moves values uses the range of its input. All others are their own source, including
    what a float operator (Sigmoid, LayerNormalization, ...) computes for a quantized one. The classifier's output and
    what follows it are left out: they stay float32.

    Args:
        parts: what computes in float32; by default the `float_parts` of the model.
    """
    graph = model.graph
    parts = float_parts(model) if parts is None else parts
    readers = readers_of(graph)
    known = {tensor.name for tensor in graph.initializer}
    known.update(node.output[0] for node in graph.node if node.op_type == "Constant")
    outputs = {value.name for value in graph.output}
    border = pixels.border_nodes(model)
    read = {name for node in graph.node if node.name not in border for name in node.input}
    sources = {value.name: value.name for value in graph.input if value.name in read - known}
    scores = tail_tensors(model, (node for node in find_classifier(model) if node.op_type in MATRIX))
    float_or_constant = outputs | known | not_float32(graph) | scores | {""}
    for node in graph.node:
        readers_of_output = readers.get(node.output[0], [])
        makes_float = node.op_type == "Gemm" or node.output[0] in float_or_constant
        in_float = node.name in border or node.name in parts.nodes or node.op_type not in QUANTIZED_OPS
        if in_float or (makes_float and node.op_type not in MATRIX):
            continue
        if node.op_type not in ACTIVATIONS:  # these use the range of their input
            sources.update((name, name) for name in node.input if name not in float_or_constant | sources.keys())
        is_read_in_float = node.op_type in MATRIX and all(each.name in parts.nodes for each in readers_of_output)
        if makes_float or is_read_in_float or node.output[0] in parts.outputs:
            continue
        inherits = node.op_type in SAME_SCALE and node.input[0] in sources
        for name in filter(None, node.output):
            sources[name] = sources[node.input[0]] if inherits else name
    split = {name for node in graph.node if node.op_type == "Split" for name in node.output}
    # From the end, so that a whole chain of activations uses the range of the last one.
    for node in reversed(graph.node):
        passes = node.op_type in ACTIVATIONS | _MOVES and not {node.name, node.input[0]} & (parts.nodes | split)
        passes = passes and {node.input[0], node.output[0]} <= sources.keys()
        if passes and len(readers[node.input[0]]) == 1 and node.input[0] not in outputs:
            sources[node.input[0]] = sources[node.output[0]]
    return sources


def observed_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the activations that calibration has to observe, in graph order, the model's input first."""
    sources = range_sources(model)
    return [name for name in sources if name in set(sources.values())]


def layer_inputs(model: onnx.ModelProto) -> dict[str, int]:
    """Return the activations that layers with constant weights read, in graph order, and the axis of their channels.

    That is the last of what a MatMul reads; where a convolution reads it too, its axis counts.
    """
    known = constants(model)
    other = not_float32(model.graph)
    found: dict[str, int] = {}
    for node in model.graph.node:
        name, last = node.input[0] if node.input else "", node.op_type == "MatMul"
        is_layer = node.op_type in WEIGHTED and not (last and is_product(node, known))
        if is_layer and name not in known and name not in other and (not last or name not in found):
            found[name] = -1 if last else 1
    return found


def never_negative(model: onnx.ModelProto) -> frozenset[str]:
    """Return the outputs of ReLUs and sigmoids, which hold no value below zero whatever they read."""
    return frozenset(node.output[0] for node in model.graph.node if node.op_type in _NEVER_NEGATIVE)


def classifier_inputs(model: onnx.ModelProto) -> frozenset[str]:
    """Return the observed activations that stay in float32 with the classifier; none where that would cost too much.

    These are the activations that only the classifier reads, and the output of a convolution that is the classifier. In
    float32 (with the classifier about a thousandth of a ResNet's work) they add no noise just before the scores.
    """
    sources = range_sources(model)
    work = work_of_layers(model)
    affordable = _FLOAT_SHARE * sum(work.values())
    layers = find_classifier(model)
    names = {node.name for node in layers}
    found: set[str] = set()
    for layer in layers:
        source = _float32_source(model, layer.input[0], sources)
        alone = source is not None and _is_read_by(model, source, sources, names)
        # In ONNX Runtime a layer with a float output computes in float; the output of a matrix product is float anyway.
        in_float = _makers(model, source, sources) if source is not None and alone else set()
        is_matrix = layer.op_type in MATRIX
        if (
            sum(work[name] for name in in_float if name not in names) + (0 if is_matrix else work[layer.name])
            > affordable
        ):
            continue
        if source is not None and alone:
            found.add(source)
        if alone or is_matrix:
            found.update(sources[name] for name in tail_tensors(model, [layer]) if name in sources)
    return frozenset(found)


def _makers(model: onnx.ModelProto, source: str, sources: dict[str, str]) -> set[str]:
    """Return the layers that compute the values of a source, through activations and operators that move values."""
    makers = makers_of(model.graph)
    waiting = [name for name, each in sources.items() if each == source]
    found: set[str] = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type in WEIGHTED:
            found.add(node.name)
        elif node is not None and node.op_type in ACTIVATIONS | SAME_SCALE:
            waiting.append(node.input[0])
    return found


def _float32_source(model: onnx.ModelProto, name: str, sources: dict[str, str]) -> str | None:
    """Return the source of what a layer reads, before any conversion to float64."""
    makers = makers_of(model.graph)
    while name not in sources and name in makers and makers[name].op_type in _MOVES | {"Cast"}:
        name = makers[name].input[0]
    return sources.get(name)


def _is_read_by(model: onnx.ModelProto, source: str, sources: dict[str, str], layers: set[str]) -> bool:
    """Tell whether only the given layers read the values of a source; others may read its shape."""
    shared = {name for name, each in sources.items() if each == source}
    for node in model.graph.node:
        if not shared.intersection(node.input) or node.name in layers or node.op_type in SHAPE_READERS:
            continue
        if node.op_type not in SAME_SCALE | ACTIVATIONS | {"Cast"}:
            return False
        shared.update(node.output)
    return True
