"""Ranges that a Concat shares with what it joins, so that it copies levels in the place of rounding them again.

With a range of its own on either side of a Concat, a value is rounded twice: to a step s before it and to a step S
after it, with a noise of s^2 + S^2 in the place of S^2. Of an activation that nothing else reads, the finer step buys
nothing: it takes the range of the Concat. Where others read it too, they get S^2 for s^2, so the two have less noise
together while S^2 < 2 s^2.

A DenseNet joins the same features again in each layer, and a ShuffleNet passes half of its channels on unchanged:
without this, one value is rounded as often as there are layers. So Concats that join the same activation, which only
Concats read, share a range too while the step of none doubles; the activation is rounded to it once, where it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx

from pipeline.onnx_models.graphs import readers_of
from pipeline.quant.activations import Bounds, bounds_of, within_bounds
from pipeline.quant.graphs import constants
from pipeline.quant.placement import ACTIVATIONS
from pipeline.quant.qmath import Range

# What a shared step may be of the finest of its own ones, where others read that: the square root of 2 saves nothing.
_LARGEST_RATIO = 1.25
# What it may be of the finest of Concats that join the same activations. What a wider range costs one of them, the
# activation gains that it is not rounded again. densenet121 (48 images of the sample, OpenVINO): 24.9 dB and KL .00039
# where each Concat keeps its range, 24.7 and .00040 at 1.25, 24.8 and .00041 at 2, 24.8 and .00039 with one range for
# each block; speed 1, 1.06, 1.13, 1.12.
_LARGEST_RATIO_OF_CONCATS = 2.0


def share_ranges(model: onnx.ModelProto, sources: Mapping[str, str], ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return the ranges of quantized activations, with those around each Concat made one where that costs nothing.

    Args:
        sources: by activation the one whose range it uses, as of `placement.range_sources`.
        ranges: of each of them, as its quantizer covers it.
    """
    by_source = {source: ranges[name] for name, source in sources.items()}
    joined = _joined(model, sources)
    clusters = _Clusters(by_source, _bounds(model, sources))
    # A source of one Concat alone makes no pair; neighbours are enough of the Concats that join another one.
    wholes = {pair for each in joined if each.is_only_joined for pair in pairwise(each.wholes)}
    for pair in sorted(wholes, key=lambda pair: (clusters.ratio(*pair), pair)):
        clusters.unite(*pair, most=_LARGEST_RATIO_OF_CONCATS)
    alone = [each for each in joined if each.is_only_joined and clusters.are_one(each.wholes)]
    others = [(each.source, whole) for each in joined if each not in alone for whole in each.wholes]
    for pair in sorted(others, key=lambda pair: clusters.ratio(*pair)):
        clusters.unite(*pair)
    # From the end: what a Concat takes of a later one, it passes on to what it joins.
    for each in reversed(alone):
        clusters.take(each.source, each.wholes[-1])
    return {name: clusters.range_of(source) for name, source in sources.items()}


@dataclass(frozen=True)
class _Joined:
    """An activation that Concats join."""

    source: str
    wholes: list[str]  # the sources of what the Concats make, in graph order
    is_only_joined: bool  # nothing but these Concats reads its values


def _joined(model: onnx.ModelProto, sources: Mapping[str, str]) -> list[_Joined]:
    """Return what quantized Concats join, in the order of the last Concat of each."""
    readers = readers_of(model.graph)
    read_by: dict[str, set[str]] = {}
    for name, source in sources.items():
        for node in readers.get(name, ()):
            if not any(sources.get(made) == source for made in node.output):
                read_by.setdefault(source, set()).add(node.name)
    wholes: dict[str, list[str]] = {}
    concats: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.op_type != "Concat" or node.output[0] not in sources:
            continue
        whole = sources[node.output[0]]
        for source in sorted({sources[name] for name in node.input if name in sources} - {whole}):
            concats.setdefault(source, set()).add(node.name)
            wholes[source] = [*wholes.pop(source, []), whole]  # moved to the end
    return [_Joined(source, found, read_by[source] == concats[source]) for source, found in wholes.items()]


def _bounds(model: onnx.ModelProto, sources: Mapping[str, str]) -> dict[str, list[Bounds]]:
    """Return by source the bounds of the ReLUs and Clips that its quantizer takes in."""
    known = constants(model)
    found: dict[str, list[Bounds]] = {}
    for node in model.graph.node:
        bounds = bounds_of(node, known) if node.op_type in ACTIVATIONS else None
        if bounds is not None and node.output[0] in sources:
            found.setdefault(sources[node.output[0]], []).append(bounds)
    return found


class _Clusters:
    """Sources that share a range."""

    def __init__(self, ranges: Mapping[str, Range], bounds: Mapping[str, list[Bounds]]) -> None:
        self._own, self._bounds = dict(ranges), bounds
        self._members = {name: [name] for name in ranges}
        self._shared = dict(ranges)

    def range_of(self, source: str) -> Range:
        return self._shared[source]

    def ratio(self, one: str, other: str) -> float:
        """Return what the widest step is of the narrowest, were all of both to share a range."""
        members = [*self._members[one], *self._members[other]]
        width = _width(_union(self._shared[name] for name in members))
        return width / max(min(_width(self._own[name]) for name in members), 1e-30)

    def are_one(self, sources: Sequence[str]) -> bool:
        """Tell whether some sources are of one cluster."""
        return all(self._members[each] is self._members[sources[0]] for each in sources)

    def unite(self, one: str, other: str, most: float = _LARGEST_RATIO) -> None:
        """Let all of both share the range that covers them, where it is at most `most` times as wide as any of them."""
        if self._members[one] is self._members[other]:
            return
        members = [*self._members[one], *self._members[other]]
        common = _union(self._shared[name] for name in members)
        if self.ratio(one, other) <= most and self._fits(common, members):
            for name in members:
                self._members[name], self._shared[name] = members, common

    def take(self, source: str, whole: str) -> None:
        """Let a source use the range of another."""
        if self._fits(self._shared[whole], [source]):
            self._shared[source] = self._shared[whole]

    def _fits(self, common: Range, members: Iterable[str]) -> bool:
        """Tell whether the quantizers still clip where the ReLUs and Clips do that they take in."""
        return all(within_bounds(common, bounds) == common for name in members for bounds in self._bounds.get(name, ()))


def _union(ranges: Iterable[Range]) -> Range:
    listed = list(ranges)
    return Range(min(each.low for each in listed), max(each.high for each in listed))


def _width(covered: Range) -> float:
    return covered.high - covered.low
