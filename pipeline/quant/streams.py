"""Streams: activations whose channels must be changed together, and the layers that write and read them.

A ResNet's additions tie the channels of several layers: a change of a channel (another scale, another position) must be
made in all layers that write or read it. Which operators let a change through depends on the change: a positive factor
passes a ReLU, a new position passes any operator that treats all channels alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.onnx_models.graphs import attributes_of
from pipeline.quant.graphs import activation_shapes, constants
from pipeline.runtimes.sessions import tensor_bytes

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

_LARGE = 64 << 20  # bytes of weights that are changed in float32: fully connected layers, which would double the memory
NORM = "BatchNormalization"
_SPATIAL_ONLY = frozenset({"Flatten", "Reshape", "Squeeze", "ReduceMean"})  # of a pooled map: channels stay axis 1
_LINEAR = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Add"})
_ELEMENTWISE = frozenset(
    {
        "Clip",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "Mul",
        "Sigmoid",
        "Softplus",
        "Tanh",
    }
)


@dataclass(frozen=True)
class Rules:
    """Which operators let a change through."""

    passes: frozenset[str]  # operators that let the change of a channel through
    channelwise: bool  # norms and depthwise convolutions pass too, if their own parameters are changed
    grouped: bool = False  # grouped convolutions absorb the change on either side, as layers do


FACTORS = Rules(_LINEAR, channelwise=False, grouped=True)  # a positive factor; norms absorb it, as layers do
PLACES = Rules(_LINEAR | _ELEMENTWISE, channelwise=True)  # another order of the channels


@dataclass
class Stream:
    """Activations whose channels must be changed together, and the nodes that absorb the change."""

    tensors: list[str] = field(default_factory=list)
    writers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    channelwise: list[onnx.NodeProto] = field(default_factory=list)  # with a parameter for each channel
    fixed: bool = False  # an operator of another kind reads or writes it


def find_streams(model: onnx.ModelProto, rules: Rules) -> list[Stream]:
    """Return the streams that can be changed, in graph order."""
    return _Finder(model, rules).find()


class _Finder:
    """Walks a graph once and unites the tensors whose channels belong together."""

    def __init__(self, model: onnx.ModelProto, rules: Rules) -> None:
        self._model = model
        self._rules = rules
        self._known = constants(model)
        shapes = activation_shapes(model)
        self._channels = {name: shape[1] for name, shape in shapes.items() if len(shape) > 1 and shape[1] > 0}
        self._leaders: dict[str, str] = {}
        self._pooled: set[str] = set()  # tensors whose height and width are 1, or gone
        self._fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
        self._writers: dict[str, onnx.NodeProto] = {}
        self._readers: list[tuple[str, onnx.NodeProto]] = []
        self._channelwise: list[tuple[str, onnx.NodeProto]] = []

    def find(self) -> list[Stream]:
        for node in self._model.graph.node:
            data = [name for name in node.input if name and name not in self._known]
            if data:
                self._visit(node, data)
        found: dict[str, Stream] = {}
        for name in self._leaders:
            stream = found.setdefault(self._leader(name), Stream())
            stream.tensors.append(name)
            stream.fixed |= name in self._fixed
            if name in self._writers:
                stream.writers.append(self._writers[name])
        for name, node in self._readers:
            found[self._leader(name)].readers.append(node)
        for name, node in self._channelwise:
            found[self._leader(name)].channelwise.append(node)
        return [stream for stream in found.values() if not stream.fixed and stream.writers and stream.readers]

    def _visit(self, node: onnx.NodeProto, data: list[str]) -> None:
        if self._rules.channelwise and is_channelwise(node, self._known):
            self._unite(data, node)
            self._channelwise.append((node.output[0], node))
            return
        takes_up = is_layer(node, self._known, grouped=self._rules.grouped)
        if takes_up or (node.op_type == NORM and is_channelwise(node, self._known)):
            self._writers[node.output[0]] = node
            self._readers.append((data[0], node))
            self._leader(data[0])
            self._leader(node.output[0])
            return
        # An operator that broadcasts, or moves channels to another axis, changes their number on axis 1.
        counts = {self._channels.get(name) for name in (*data, node.output[0])}
        same = len(counts) == 1 and None not in counts
        if node.op_type == "GlobalAveragePool" or (node.op_type in _SPATIAL_ONLY and data[0] in self._pooled):
            self._pooled.add(node.output[0])
        if same and (self._passes(node, data) or node.output[0] in self._pooled):
            self._unite(data, node)
        else:
            self._fixed.update((*data, *node.output))

    def _passes(self, node: onnx.NodeProto, data: list[str]) -> bool:
        """Tell whether the operator treats all channels alike; its constant inputs have to be single numbers."""
        constant = [name for name in node.input if name and name not in data]
        alike = all(numpy_helper.to_array(self._known[name]).size == 1 for name in constant)
        return node.op_type in self._rules.passes and (not constant or (self._rules.channelwise and alike))

    def _unite(self, data: list[str], node: onnx.NodeProto) -> None:
        for name in data:
            self._leaders[self._leader(name)] = self._leader(node.output[0])

    def _leader(self, name: str) -> str:
        self._leaders.setdefault(name, name)
        while self._leaders[name] != name:
            name = self._leaders[name]
        return name


def is_layer(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto], *, grouped: bool = False) -> bool:
    """Tell whether the node has a weight for each pair of an input and an output channel, all of them constant.

    Args:
        grouped: of a group is enough.
    """
    settings = attributes_of(node)
    if node.op_type == "Gemm":
        whole = settings.get("transB", 0) == 1 and not settings.get("transA", 0)
        # A bias that is a single number or a row would need another shape.
        return whole and all(name in known for name in node.input[1:]) and _has_vector_bias(node, known)
    is_conv = node.op_type == "Conv" and (grouped or settings.get("group", 1) == 1)
    return is_conv and all(name in known for name in node.input[1:])


def is_channelwise(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether the node computes each channel separately, with constant parameters along their axis 0."""
    if node.op_type == NORM:
        return all(name in known for name in node.input[1:5])
    if node.op_type == "Mul" and node.input[1] in known and node.input[0] not in known:
        dims = list(known[node.input[1]].dims)
        return len(dims) == 3 and dims[0] > 1 and dims[1:] == [1, 1]
    if node.op_type != "Conv" or not all(name in known for name in node.input[1:]):
        return False
    outputs, channels = known[node.input[1]].dims[:2]
    return bool(channels == 1 and outputs == attributes_of(node).get("group", 1) and outputs > 1)


def _has_vector_bias(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    return len(node.input) < 3 or list(known[node.input[2]].dims) == [known[node.input[1]].dims[0]]


class WeightEditor:
    """A model's weights, copied for a node when it first changes them, since equal tensors are stored once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._known = constants(model)
        self._values: dict[str, Floats] = {}

    def own(self, node: onnx.NodeProto, position: int) -> Floats:
        """Return the node's own copy of an input's values, to be changed in place: float64, or large ones float32."""
        name = node.input[position]
        if name not in self._values:
            tensor = self._known[name]
            kind = np.float64 if tensor_bytes(tensor) < _LARGE else np.float32
            values = numpy_helper.to_array(tensor).astype(kind)
            name = node.input[position] = f"{node.name}.own_{position}"
            self._values[name] = values
        return self._values[name]

    def finish(self) -> None:
        """Store the changed weights in float32, and drop what no node reads any more."""
        used = {name for node in self._graph.node for name in node.input} - self._values.keys()
        tensors = self._graph.initializer
        for index in reversed(range(len(tensors))):  # one by one: filling the list anew would copy those that stay
            if tensors[index].name not in used:
                del tensors[index]
        self._known.clear()
        for name in list(self._values):  # one by one: together they take twice the memory of the model
            values = self._values.pop(name).astype(np.float32, copy=False)
            tensor = self._graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=values.shape)
            content = values.tobytes()
            del values
            tensor.raw_data = content


def multiply_inputs(editor: WeightEditor, node: onnx.NodeProto, factors: Float64) -> None:
    """Let a layer or norm multiply its input channels by factors, float64 [channels]."""
    weights = editor.own(node, 1)
    if node.op_type == NORM:
        weights *= factors
        mean = editor.own(node, 3)
        mean /= factors
    else:
        groups = attributes_of(node).get("group", 1)
        by_group = weights.reshape(groups, -1, *weights.shape[1:])  # a view
        by_group *= factors.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))
