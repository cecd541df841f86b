"""What each quantizer costs alone: one activation or one layer's weights in int8, everything else in float32.

The float model runs once and keeps the activations at each quantizer; for each quantizer only the part of the network
after it runs again. Such small noises are nearly independent: the sum of their powers is close to the noise of the
whole int8 model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.data.preprocess import Prepared
from pipeline.host.hardware import available_cores
from pipeline.onnx_models.scores import find_scores
from pipeline.quant import placement
from pipeline.quant.activations import covered_ranges
from pipeline.quant.bias_correction import Dequantized
from pipeline.quant.divergence import Divergence
from pipeline.quant.graphs import WEIGHTED, constants, not_float32
from pipeline.quant.qmath import Range
from pipeline.quant.shared_ranges import share_ranges
from pipeline.runtimes.activations import ActivationReader
from pipeline.runtimes.sessions import open_session

Float32 = npt.NDArray[np.float32]

_LEVELS = 255  # steps of a uint8 activation
_MEMORY = 1 << 30  # bytes of activations kept; where they are larger, fewer images are used
_MIN_IMAGES = 4


class Kind(Enum):
    ACTIVATION = "activation"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class QuantizerCost:
    """What one quantizer costs."""

    kind: Kind
    name: str  # of the activation, or of the layer whose weights they are
    readers: tuple[str, ...]  # layers that would compute in float without it
    noise: float  # power, in squared logits an image
    sqnr_db: float  # of the logits, were this the only quantizer
    kl: float  # divergence of the answers from float32, nats per image


def quantizer_ranges(float32: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return what the quantizer of each activation covers.

    Args:
        ranges: by name for every tensor of `placement.observed_tensors(float32)`.
    """
    sources, covered = placement.range_sources(float32), covered_ranges(float32, ranges)
    return share_ranges(float32, sources, {name: covered[source] for name, source in sources.items()})


def quantized_activations(float32: onnx.ModelProto, int8: onnx.ModelProto) -> list[str]:
    """Return the activations of a float32 model that set the range of a quantizer in its QDQ model, in graph order."""
    quantized = {node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    return list(dict.fromkeys(source for name, source in placement.range_sources(float32).items() if name in quantized))


class Sensitivity:
    """The cuts of a float32 model: after each quantized activation, and before each layer with int8 weights."""

    def __init__(self, float32: onnx.ModelProto, int8: onnx.ModelProto, ranges: Mapping[str, Range]) -> None:
        self._model = float32
        self._known = constants(float32)
        self._other_types = not_float32(float32.graph)
        self._sources = placement.range_sources(float32)
        self._ranges = quantizer_ranges(float32, ranges)
        self._output = float32.graph.output[0].name
        self._scores = find_scores(float32)
        active = quantized_activations(float32, int8)
        self._suffixes = [*self._activation_suffixes(active), *self._weight_suffixes(Dequantized(int8))]

    def __len__(self) -> int:
        return len(self._suffixes)

    def measure(self, images: Sequence[Prepared], advance: Callable[[], object]) -> list[QuantizerCost]:
        """Return what each costs, the most expensive first.

        Args:
            images: prepared, [C, H, W]; as many as fit in the memory are used, at least 4.
            advance: is called after each quantizer.
        """
        wanted = list(dict.fromkeys(name for suffix in self._suffixes for name in suffix.inputs))
        reader = ActivationReader(self._model, [*wanted, self._output], threads=available_cores())
        kept: list[dict[str, Float32]] = []
        size = 0
        for image in images:
            values = reader.read(image)
            kept.append({name: values[name].copy() for name in (*wanted, self._output)})
            size += sum(value.nbytes for value in kept[-1].values())
            if len(kept) >= _MIN_IMAGES and size * (len(kept) + 1) / len(kept) > _MEMORY:
                break
        del reader
        costs = []
        for suffix in self._suffixes:
            costs.append(self._cost(suffix, kept))
            advance()
        return sorted(costs, key=lambda cost: -cost.noise)

    def _cost(self, suffix: _Suffix, kept: Sequence[Mapping[str, Float32]]) -> QuantizerCost:
        session = open_session(suffix.model(self._model).SerializeToString(), threads=available_cores())
        divergence = Divergence(self._scores)
        for values in kept:
            feed = {name: values[name] for name in suffix.inputs}
            if suffix.kind is Kind.ACTIVATION:
                feed[suffix.name] = fake_quantize(feed[suffix.name], self._ranges[suffix.name])
            divergence.add(values[self._output], session.run([self._output], feed)[0])
        noise = divergence.noise / divergence.images
        return QuantizerCost(suffix.kind, suffix.name, suffix.readers, noise, divergence.sqnr_db, divergence.kl)

    def _activation_suffixes(self, active: Collection[str]) -> Iterator[_Suffix]:
        for name in (name for name in dict.fromkeys(self._sources.values()) if name in active):
            shared = {each for each, source in self._sources.items() if source == name}
            nodes = self._after({name}, ())
            readers = [node.name for node in nodes if node.op_type in WEIGHTED and shared.intersection(node.input)]
            yield _Suffix(Kind.ACTIVATION, name, tuple(readers), nodes, self._inputs(nodes), {})

    def _weight_suffixes(self, int8: Dequantized) -> Iterator[_Suffix]:
        for node in self._model.graph.node:
            if node.op_type not in WEIGHTED or node.input[1] not in self._known:
                continue
            replaced = int8.constants_of(node.name)
            if replaced is None:
                continue
            nodes = self._after(set(node.output), (node.name,))
            made = dict(zip(node.input[1:], replaced, strict=True))
            yield _Suffix(Kind.WEIGHTS, node.name, (node.name,), nodes, self._inputs(nodes), made)

    def _after(self, tensors: set[str], including: Sequence[str]) -> list[onnx.NodeProto]:
        """Return the nodes that tensors reach, in graph order, and those named.

        With them those that compute shapes for them, or convert to float64: only float32 tensors can cross a cut.
        """
        graph = self._model.graph
        reached, found = set(tensors), set()
        for index, node in enumerate(graph.node):
            if node.name in including or reached.intersection(node.input):
                reached.update(node.output)
                found.add(index)
        wanted = {name for index in found for name in graph.node[index].input} & self._other_types
        for index in reversed(range(len(graph.node))):
            if wanted.intersection(graph.node[index].output):
                found.add(index)
                wanted.update(self._other_types.intersection(graph.node[index].input))
        return [graph.node[index] for index in sorted(found)]

    def _inputs(self, nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        return tuple(name for name in read if name not in made and name not in self._known)


@dataclass(frozen=True)
class _Suffix:
    """The part of a network after a cut."""

    kind: Kind
    name: str
    readers: tuple[str, ...]
    nodes: Sequence[onnx.NodeProto]
    inputs: tuple[str, ...]  # activations that cross the cut
    replaced: Mapping[str, Float32]  # constants that differ from the float model's

    def model(self, whole: onnx.ModelProto) -> onnx.ModelProto:
        known = constants(whole)
        read = dict.fromkeys(name for node in self.nodes for name in node.input if name in known)
        initializers = []
        for name in read:
            value = self.replaced[name] if name in self.replaced else numpy_helper.to_array(known[name])
            initializers.append(numpy_helper.from_array(value, name))
        graph = onnx.helper.make_graph(
            list(self.nodes),
            "suffix",
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in self.inputs],
            list(whole.graph.output),
            initializers,
        )
        return onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)


def fake_quantize(values: Float32, covered: Range) -> Float32:
    """Return values as a uint8 quantizer of the range gives them back: float32, same shape."""
    scale = np.float32((covered.high - covered.low) / _LEVELS) or np.float32(1)
    zero_point = np.rint(-covered.low / scale)
    levels = np.clip(np.rint(values / scale) + zero_point, 0, _LEVELS)
    found: Float32 = ((levels - zero_point) * scale).astype(np.float32)
    return found
