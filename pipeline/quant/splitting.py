"""Splits activations: two int8 channels in the place of one, so that its values are rounded in narrower steps.

A ReLU's channel x of at most 2 t is the sum of clip(x, 0, t) and clip(x - t, 0, t). The convolution that writes it
computes both, the second with a bias that is t lower; quantizers saturate where the parts are clipped. Convolutions
that read it have the same weights for both. With t half of what the quantizer covered, rounding causes a quarter of
the noise, in int8 kernels alone; weights keep the values that they were rounded to. Channels that stay below t need no
second part: with a higher t fewer need one, which costs less time. An addition reads the sum of the parts in float32,
from a 1x1 convolution, and what it is added to as it is: OpenVINO computes the addition within one of the two
convolutions, and would round the other.

Channels of their own for what exceeds a range: Zhao et al., "Improving Neural Network Quantization without Retraining
using Outlier Channel Splitting" (arXiv:1901.09504); there values are halved, which keeps their steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import attributes_of, makers_of, readers_of
from pipeline.quant.assemble import Parts
from pipeline.quant.channel_order import match, pair_costs
from pipeline.quant.graphs import constants
from pipeline.quant.int8_weights import bound_pairs
from pipeline.quant.neighbours import weight_pairs
from pipeline.quant.placement import ACTIVATIONS
from pipeline.quant.qmath import Range

Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]

_MARGIN = 1.25  # of the largest value seen of a channel: others may be larger
_BLOCK = 16  # channels that a kernel computes at a time
_SHARES = (4, 2, 4 / 3, 1)  # of the channels that reach beyond half of the range: a quarter of them and so on


@dataclass(frozen=True)
class Split:
    """How an activation is split."""

    channels: Sequence[int]  # that get a second part, in the order in which it is stored; an even number
    bound: float  # where the first part ends and the second begins, units of the activation
    left: float  # share of the quantizer's noise, in [1/4, 1)


def read_splits(held: Mapping[str, Any], ranges: Mapping[str, Range]) -> dict[str, Split]:
    """Return splits by activation, from the document that a search wrote of them.

    Args:
        held: of each the fields of `Split`; of earlier versions the channels alone, split in the middle of the range.
        ranges: what the quantizers covered before.
    """
    return {
        name: Split(**each) if isinstance(each, dict) else Split(each, ranges[name].high / 2, 0.25)
        for name, each in held.items()
    }


@dataclass(frozen=True)
class Place:
    """Where an activation can be split; names of nodes, and of tensors."""

    activation: str  # the ReLU or Clip
    writer: str  # the convolution before it
    passed: tuple[str, ...]  # pools that pass it on
    readers: tuple[str, ...]  # convolutions
    added: tuple[tuple[str, str], ...]  # additions, and what they read


def can_split(model: onnx.ModelProto, name: str) -> bool:
    """Tell whether an activation of a float32 model can be split.

    A ReLU or Clip behind a convolution can that convolutions of one group read, at least one, perhaps after maximum
    pooling, and beside these additions. The number of its channels is even: neighbours among the weights of their
    readers, which are bounded in pairs, then stay neighbours.
    """
    return find_place(model, name) is not None


def find_place(model: onnx.ModelProto, name: str) -> Place | None:
    """Return where an activation can be split; None where it cannot be, see `can_split`."""
    makers, readers, known = makers_of(model.graph), readers_of(model.graph), constants(model)
    activation = makers.get(name)
    if activation is None or activation.op_type not in ACTIVATIONS or len(readers[activation.input[0]]) != 1:
        return None
    writer = makers.get(activation.input[0])
    if writer is None or not _is_plain(writer, known) or known[writer.input[1]].dims[0] % 2:
        return None
    waiting, passed, found, added = [name], list[str](), list[str](), list[tuple[str, str]]()
    while waiting:
        tensor = waiting.pop()
        if any(value.name == tensor for value in model.graph.output):
            return None
        for node in readers.get(tensor, ()):
            if node.op_type == "MaxPool" and len(node.output) == 1:
                passed.append(node.name)
                waiting.append(node.output[0])
            elif node.op_type == "Add" and not set(node.input) & known.keys():
                added.append((node.name, tensor))
            elif _is_plain(node, known) and node.input[0] == tensor:
                found.append(node.name)
            else:
                return None
    return Place(activation.name, writer.name, tuple(passed), tuple(found), tuple(added)) if found else None


def _is_plain(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether a node is a convolution of one group with constant weights and a bias."""
    is_conv = node.op_type == "Conv" and attributes_of(node).get("group", 1) == 1
    return is_conv and len(node.input) == 3 and all(name in known for name in node.input[1:])


def ways_to_split(model: onnx.ModelProto, name: str, largest: npt.NDArray[np.floating], covered: Range) -> list[Split]:
    """Return the ways to split an activation, from few channels to all that reach beyond half of its range.

    Args:
        model: float32.
        name: of an activation that `can_split`.
        largest: [channels], the largest value seen of each.
        covered: by the activation's quantizer.

    Returns:
        Ways with more and more channels, each a multiple of 16 where there are as many, since kernels compute 16 at a
        time, and with lower and lower bounds: none of the channels that stay whole was seen beyond it. Neighbours fit
        each other's weights in the layers that read them,
        see `channel_order`.
    """
    half = covered.high / 2
    wide = int((_MARGIN * largest > half).sum())
    counts = [min(len(largest), _BLOCK * max(1, math.ceil(wide / share / _BLOCK))) for share in _SHARES]
    order = np.argsort(-largest, kind="stable")
    found: list[Split] = []
    for count in dict.fromkeys(counts):
        bound = half if count == counts[-1] else max(half, float(largest[order[count]]))
        if found and bound >= found[-1].bound:  # fewer channels do as well
            continue
        if bound < covered.high:
            channels = _in_order(model, name, np.sort(order[:count]))
            found.append(Split(channels, bound, left=(bound / covered.high) ** 2))
    return found


def efficient(ways: Sequence[Split]) -> list[Split]:
    """Return of `ways_to_split` those that save most noise a channel.

    Of these, no way with more channels saves more a channel.
    """
    kept: list[Split] = []
    count, left = 0, 1.0
    for at, way in enumerate(ways):
        saved = [(left - each.left) / (len(each.channels) - count) for each in ways[at:]]
        if saved[0] == max(saved):
            kept.append(way)
            count, left = len(way.channels), way.left
    return kept


def _in_order(model: onnx.ModelProto, name: str, chosen: npt.NDArray[np.intp]) -> list[int]:
    """Return channels of an activation such that neighbours fit each other's weights in the layers that read it."""
    place, known = find_place(model, name), constants(model)
    assert place is not None, "the caller asked whether it can be split"
    cost = np.zeros((len(chosen), len(chosen)))
    for node in model.graph.node:
        if node.name in place.readers:
            weights = numpy_helper.to_array(known[node.input[1]])[:, chosen]
            cost += pair_costs(weights.reshape(*weights.shape[:2], -1))
    order: list[int] = chosen[match(cost).reshape(-1)].tolist()
    return order


def split(model: onnx.ModelProto, parts: Parts, splits: Mapping[str, Split]) -> tuple[onnx.ModelProto, Parts]:
    """Return a float32 model with some activations split, and the parts of its int8 model.

    Args:
        model: float32; it is not changed.
        parts: of its int8 model.
        splits: by activation; these `can_split` and are quantized, with ranges from zero to twice the bound at most.
    """
    if not splits:  # a copy takes the model's memory once more
        return model, parts
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]  # with shapes that no longer hold
    for name, how in splits.items():
        place = find_place(changed, name)
        assert place is not None, "the caller asked whether it can be split"
        parts = _Splitting(changed, parts, name, place, how).run()
    return changed, parts


class _Splitting:
    """Splits one activation, in place."""

    def __init__(self, model: onnx.ModelProto, parts: Parts, name: str, place: Place, how: Split) -> None:
        self._graph, self._parts, self._name, self._place = model.graph, parts, name, place
        self._doubled, self._bound = list(how.channels), how.bound
        self._known = constants(model)
        self._nodes = {node.name: node for node in model.graph.node}
        self._ranges, self._rounded = dict(parts.ranges), dict(parts.rounded)
        self._means = None if parts.means is None else dict(parts.means)
        self._in_float = set(parts.float_activations)

    def run(self) -> Parts:
        """Change the graph; return the parts of the new model."""
        self._ranges[self._name] = Range(0.0, self._bound)
        self._clip()
        channels = self._double_outputs(self._nodes[self._place.writer])
        for name in self._place.readers:
            self._double_inputs(self._nodes[name])
        for tensor in dict.fromkeys(tensor for _, tensor in self._place.added):
            self._add_up(tensor, channels)
        return replace(
            self._parts.adding_in_float(name for name, _ in self._place.added),
            ranges=self._ranges,
            rounded=self._rounded,
            means=self._means,
            float_activations=frozenset(self._in_float),
        )

    def _clip(self) -> None:
        node = self._nodes[self._place.activation]
        bounds = [self._constant(node, position, np.float32(value)) for position, value in ((1, 0.0), (2, self._bound))]
        node.CopyFrom(helper.make_node("Clip", [node.input[0], *bounds], node.output[:1], node.name))

    def _double_outputs(self, node: onnx.NodeProto) -> int:
        """Let a layer compute channels again, lower by the bound; return how many there were."""
        weights, bias, again = self._values(node, 1), self._values(node, 2), self._doubled
        node.input[1] = self._constant(node, 1, np.concatenate([weights, weights[again]]))
        node.input[2] = self._constant(node, 2, np.concatenate([bias, bias[again] - np.float32(self._bound)]))
        if node.name in self._rounded:
            found = self._rounded[node.name]
            scales, error = found.scales, found.mean_error
            self._rounded[node.name] = replace(
                found,
                weights=np.concatenate([found.weights, found.weights[again]]),
                scales=scales if scales.size == 1 else np.concatenate([scales, scales[again]]),
                mean_error=None if error is None else np.concatenate([error, error[again]]),
            )
        return len(weights)

    def _double_inputs(self, node: onnx.NodeProto) -> None:
        """Let a layer multiply both parts of a channel by the same weights."""
        weights = self._values(node, 1)
        again = weights[:, self._doubled]
        if node.name in self._rounded:
            found = self._rounded[node.name]
            rows = found.weights.reshape(len(weights), weights.shape[1], -1)
            second = rows[:, self._doubled].reshape(len(weights), -1)
            bounded = bound_pairs(second, second.astype(np.float32), weight_pairs(again.shape))
            both = np.concatenate([rows, bounded.reshape(len(weights), len(self._doubled), -1)], axis=1)
            self._rounded[node.name] = replace(found, weights=both.reshape(len(weights), -1))
            # As rounded: float weights of pairs that are neighbours only here could widen the scale.
            again = (bounded.astype(np.float32) * found.scales[:, None]).reshape(again.shape)
        node.input[1] = self._constant(node, 1, np.concatenate([weights, again], axis=1))
        means = (self._means or {}).get(node.input[0])
        if self._means is not None and means is not None and len(means) == weights.shape[1]:
            # Rounding changes the weights of both parts alike, so that only the mean of their sum matters.
            self._means[node.input[0]] = np.concatenate([means, np.zeros(len(self._doubled))])

    def _add_up(self, tensor: str, channels: int) -> None:
        """Let additions read the sum of the parts of each channel, in float32."""
        total = f"{tensor}.total"
        ones = np.eye(channels, dtype=np.float32)
        ones = np.concatenate([ones, ones[:, self._doubled]], axis=1)[:, :, None, None]
        node = helper.make_node("Conv", [tensor, "", ""], [total], total, kernel_shape=[1, 1])
        node.input[1] = self._constant(node, 1, ones)
        node.input[2] = self._constant(node, 2, np.zeros(channels, np.float32))
        for name in {name for name, read in self._place.added if read == tensor}:
            inputs = self._nodes[name].input
            inputs[:] = [total if each == tensor else each for each in inputs]
        first = next(index for index, each in enumerate(self._graph.node) if tensor in each.output) + 1
        self._graph.node.insert(first, node)
        self._ranges[total] = Range(0.0, 2 * self._bound)
        self._in_float.add(total)

    def _values(self, node: onnx.NodeProto, position: int) -> Float32:
        values: Float32 = numpy_helper.to_array(self._known[node.input[position]])
        return values

    def _constant(self, node: onnx.NodeProto, position: int, values: Array | np.float32) -> str:
        """Store a constant under a name of its own; return the name."""
        name = f"{node.name}.split_{position}"
        while name in self._known:
            name += "_"
        tensor = numpy_helper.from_array(np.asarray(values), name)
        self._graph.initializer.append(tensor)
        self._known[name] = tensor
        return name
