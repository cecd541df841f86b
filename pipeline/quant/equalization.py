"""Cross-layer equalization: channels of one activation share a scale, so they are made to span like ranges.

What a channel is divided by, the layers that write it and those that read it take into their weights; ReLU, pooling and
addition pass it through, so a residual stream is rescaled as one. The float model computes the same function.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), 4.1,
extended to residual streams, with measured ranges in the place of weight ranges, and by the square root of their ratio:
the whole ratio makes the weights' error grow by more than the activations' falls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.quant.graphs import activation_shapes, constants

Float64 = npt.NDArray[np.float64]

STRENGTH = 0.5  # exponent of the ratio of ranges
_LEAST_RATIO = 1e-2  # of a channel's range to the widest; one that is hardly ever on must not blow up its weights
# Operators after which a channel times a positive factor is still that channel times that factor.
_PASSES_FACTORS = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Add"})
_SPATIAL_ONLY = frozenset({"Flatten", "Reshape", "Squeeze", "ReduceMean"})  # of a pooled map: channels stay axis 1
_NORM = "BatchNormalization"


@dataclass
class Stream:
    """Activations whose channels must be rescaled together, and the layers that write and read them."""

    tensors: list[str] = field(default_factory=list)
    writers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    fixed: bool = False  # something else reads or writes it


def streams(model: onnx.ModelProto) -> list[Stream]:
    """Return the streams that can be rescaled, in graph order."""
    known = constants(model)
    channels = _channel_counts(model)
    pooled: set[str] = set()  # tensors whose height and width are 1, or gone
    leaders: dict[str, str] = {}

    def leader(name: str) -> str:
        leaders.setdefault(name, name)
        while leaders[name] != name:
            name = leaders[name]
        return name

    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    writers: dict[str, onnx.NodeProto] = {}
    readers: list[tuple[str, onnx.NodeProto]] = []
    for node in model.graph.node:
        data = [name for name in node.input if name and name not in known]
        if not data:
            continue
        if _is_layer(node, known):
            writers[node.output[0]] = node
            readers.append((data[0], node))
            leader(data[0])
            leader(node.output[0])
            continue
        # Whatever broadcasts, or moves channels to another axis, has another number of them there.
        counts = {channels.get(name) for name in (*data, node.output[0])}
        same = len(counts) == 1 and None not in counts
        if node.op_type == "GlobalAveragePool" or (node.op_type in _SPATIAL_ONLY and data[0] in pooled):
            pooled.add(node.output[0])
        passes = node.op_type in _PASSES_FACTORS and len(data) == len(node.input)
        if same and (passes or node.output[0] in pooled):
            for name in data:
                leaders[leader(name)] = leader(node.output[0])
        else:
            fixed.update((*data, *node.output))
    found: dict[str, Stream] = {}
    for name in leaders:
        stream = found.setdefault(leader(name), Stream())
        stream.tensors.append(name)
        stream.fixed |= name in fixed
        if name in writers:
            stream.writers.append(writers[name])
    for name, node in readers:
        found[leader(name)].readers.append(node)
    return [stream for stream in found.values() if not stream.fixed and stream.writers and stream.readers]


def _channel_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Return the size of axis 1 of every activation whose shape is known."""
    shapes = activation_shapes(model)
    return {name: shape[1] for name, shape in shapes.items() if len(shape) > 1 and shape[1] > 0}


def _is_layer(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether the node has a weight for each pair of channels, or one for each channel (a norm)."""
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == _NORM:
        return all(name in known for name in node.input[1:5])
    if node.op_type == "Gemm":
        whole = attributes.get("transB", 0) == 1 and not attributes.get("transA", 0)
        # A bias of one number, or one that is a row, would need another shape.
        return whole and all(name in known for name in node.input[1:]) and _is_vector(node, known)
    is_conv = node.op_type == "Conv" and attributes.get("group", 1) == 1
    return is_conv and all(name in known for name in node.input[1:])


def _is_vector(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    return len(node.input) < 3 or list(known[node.input[2]].dims) == [known[node.input[1]].dims[0]]


def equalize(model: onnx.ModelProto, largest: Mapping[str, Float64]) -> dict[str, float]:
    """Rescale the channels of every stream in place.

    Args:
        model: float32, batch norms folded.
        largest: float64 [channels] by tensor name, the largest magnitude of each channel of an activation; those that
            will not be quantized may be left out.

    Returns:
        By the name of each stream's first tensor the ratio of its widest to its narrowest factor.
    """
    editor = _Editor(model)
    spread = {}
    for stream in streams(model):
        ratios = [
            largest[name] / largest[name].max() for name in stream.tensors if name in largest and largest[name].any()
        ]
        if not ratios:
            continue
        factors = np.maximum(np.max(ratios, axis=0), _LEAST_RATIO) ** STRENGTH
        for node in stream.writers:
            editor.divide_outputs(node, factors)
        for node in stream.readers:
            editor.multiply_inputs(node, factors)
        spread[stream.tensors[0]] = float(factors.max() / factors.min())
    editor.finish()
    return spread


class _Editor:
    """A model's weights, copied for their layer when they are first changed: equal tensors are stored once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._known = constants(model)
        self._values: dict[str, Float64] = {}

    def divide_outputs(self, node: onnx.NodeProto, factors: Float64) -> None:
        for position in (1, 2) if node.op_type == _NORM else range(1, len(node.input)):
            values = self._own(node, position)
            values /= factors.reshape(-1, *[1] * (values.ndim - 1))

    def multiply_inputs(self, node: onnx.NodeProto, factors: Float64) -> None:
        weights = self._own(node, 1)
        if node.op_type == _NORM:
            weights *= factors
            mean = self._own(node, 3)
            mean /= factors
        else:
            weights *= factors.reshape(1, -1, *[1] * (weights.ndim - 2))

    def _own(self, node: onnx.NodeProto, position: int) -> Float64:
        name = node.input[position]
        if name not in self._values:
            values = numpy_helper.to_array(self._known[name]).astype(np.float64)
            name = node.input[position] = f"{node.name}.equalized_{position}"
            self._values[name] = values
        return self._values[name]

    def finish(self) -> None:
        """Store the changed weights in float32, and drop what no node reads any more."""
        used = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        self._graph.initializer.extend(
            numpy_helper.from_array(values.astype(np.float32), name) for name, values in self._values.items()
        )


def scaled_tensors(model: onnx.ModelProto, wanted: Collection[str]) -> Iterator[str]:
    """Yield the tensors of `wanted` whose channels' ranges `equalize` needs."""
    for stream in streams(model):
        yield from (name for name in stream.tensors if name in wanted)
