"""Loops and Scans whose number of rounds is the same for every image, written out: the body's nodes once a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.bodies import replace_node, unpack
from pipeline.onnx_models.graphs import (
    Names,
    bodies_of,
    constants_of,
    graphs_of,
    integer,
    integers,
    integers_tensor,
    makers_of,
    remove_unused,
    shapes_of,
)

_MOST_ROUNDS = 100  # beyond, the graph would grow too large
_VALUES = 2  # Loop: inputs before the values that it hands on, which are the count and the condition
_COPIES = ("Identity", "Cast")

Settled = Callable[[str], int | None]


def write_out(model: onnx.ModelProto, node: onnx.NodeProto, settled: Settled) -> bool:
    """Replace a Loop or Scan of the outer graph by its rounds, in place; tell whether it could be.

    Args:
        model: opset 13 or later.
        settled: gives the value of a tensor that is the same for every image, None for another.
    """
    if node.op_type == "Loop":
        return _write_loop(model, node, settled)
    return node.op_type == "Scan" and _write_scan(model, node)


def _write_loop(model: onnx.ModelProto, node: onnx.NodeProto, settled: Settled) -> bool:
    graph, names = model.graph, Names(model)
    rounds, values = _rounds(graph, names, node, settled), list(node.input[_VALUES:])
    stacks = node.output[len(values) :]
    if rounds is None or rounds > _MOST_ROUNDS or (not rounds and any(stacks)):  # of no rounds no shape is known
        return False

    def feed(number: int, carried: list[str]) -> tuple[list[onnx.NodeProto], list[str]]:
        counts = _scalar(graph, names.free(f"{node.name}_{number}_number"), np.array(number, np.int64))
        goes_on = _scalar(graph, names.free(f"{node.name}_{number}_goes_on"), np.array(True))
        return [], [counts, goes_on, *carried]

    _write(graph, names, node, _Rounds(rounds, values, 1, feed, [0] * len(stacks), [False] * len(stacks)))
    return True


def _write_scan(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    graph, names = model.graph, Names(model)
    scanned = integer(node, "num_scan_inputs", 0)
    values, sequences = list(node.input[:-scanned]), list(node.input[-scanned:])
    stacks = len(node.output) - len(values)
    axes = integers(node, "scan_input_axes") or [0] * scanned
    backwards = integers(node, "scan_input_directions") or [0] * scanned
    shape = shapes_of(model).get(sequences[0], [])
    rounds = shape[axes[0]] if axes[0] < len(shape) else None
    if not isinstance(rounds, int) or not 0 < rounds <= _MOST_ROUNDS:
        return False
    length: int = rounds

    def feed(number: int, carried: list[str]) -> tuple[list[onnx.NodeProto], list[str]]:
        nodes, parts = list[onnx.NodeProto](), list[str]()
        for sequence, axis, reverse in zip(sequences, axes, backwards, strict=True):
            part = names.free(f"{node.name}_{number}_{sequence}")
            place = np.array(length - 1 - number if reverse else number, np.int64)
            index = _scalar(graph, names.free(f"{part}_place"), place)
            nodes.append(helper.make_node("Gather", [sequence, index], [part], names.free(f"{part}_gather"), axis=axis))
            parts.append(part)
        return nodes, [*carried, *parts]

    stacked_at = integers(node, "scan_output_axes") or [0] * stacks
    reversed_ = [bool(each) for each in integers(node, "scan_output_directions") or [0] * stacks]
    _write(graph, names, node, _Rounds(length, values, 0, feed, stacked_at, reversed_))
    return True


@dataclass(frozen=True)
class _Rounds:
    """What the rounds of a Loop or Scan are made of."""

    count: int
    values: list[str]  # handed on from round to round, at first
    skipped: int  # outputs of the body before those values
    feed: Callable[[int, list[str]], tuple[list[onnx.NodeProto], list[str]]]  # nodes, and the body's inputs
    axes: Sequence[int]  # along which what each round gives is put together
    backwards: Sequence[bool]  # of these, whether the last round's is first


def _write(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, rounds: _Rounds) -> None:
    """Put the nodes of all rounds in the place of a node."""
    body, carried, written = _body_of(node), rounds.values, list[onnx.NodeProto]()
    stacked: list[list[str]] = [[] for _ in rounds.axes]
    for number in range(rounds.count):
        before, inputs = rounds.feed(number, carried)
        given = dict(zip((value.name for value in body.input), inputs, strict=True))
        nodes, outputs = unpack(graph, names, body, f"{node.name}_{number}", given)
        written += [*before, *nodes]
        end = rounds.skipped + len(carried)
        carried = outputs[rounds.skipped : end]
        for values, name in zip(stacked, outputs[end:], strict=True):
            values.append(name)
    for target, source in zip(node.output[: len(carried)], carried, strict=True):
        if target:
            written.append(helper.make_node("Identity", [source], [target], names.free(f"{node.name}_last")))
    for target, values, axis, reverse in zip(
        node.output[len(carried) :], stacked, rounds.axes, rounds.backwards, strict=True
    ):
        written += _stack(graph, names, values[::-1] if reverse else values, target, axis) if target else []
    replace_node(graph, node, written)


def _body_of(node: onnx.NodeProto) -> onnx.GraphProto:
    body: onnx.GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    return body


def _scalar(graph: onnx.GraphProto, name: str, value: npt.NDArray[np.generic]) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _rounds(graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, settled: Settled) -> int | None:
    """Return how many rounds a Loop makes whatever the image, None where that is not known."""
    times, condition = (*node.input[:_VALUES], "")[:_VALUES]
    count, begins = settled(times) if times else None, settled(condition) if condition else 1
    if (times and count is None) or begins is None:
        return None
    if not begins:
        return 0
    if _always_goes_on(_body_of(node), settled):
        return None if count is None else max(count, 0)
    most = _MOST_ROUNDS + 1 if count is None else min(max(count, 0), _MOST_ROUNDS + 1)
    return _rounds_of_while(graph, names, node, most, settled)


def _rounds_of_while(
    graph: onnx.GraphProto, names: Names, node: onnx.NodeProto, most: int, settled: Settled
) -> int | None:
    """Return how many rounds, of `most` at most, a Loop makes whose body decides whether it goes on.

    The same Loop with nothing but what decides that, and a count, is put into the graph for as long as this takes.
    """
    body, handed_on = onnx.GraphProto(), _deciding(_body_of(node))
    body.CopyFrom(_body_of(node))
    given, made, one = (names.free(f"{node.name}_{part}") for part in ("rounds_before", "rounds", "one"))
    start, limit, goes_on, found = (
        names.free(f"{node.name}_{part}") for part in ("no_rounds", "most_rounds", "begins", "rounds_made")
    )
    inputs = [*body.input[:_VALUES], *(body.input[_VALUES + at] for at in handed_on)]
    outputs = [body.output[0], *(body.output[1 + at] for at in handed_on)]
    whole = onnx.TensorProto.INT64
    counted = helper.make_graph(
        [*body.node, helper.make_node("Add", [given, one], [made])],
        body.name,
        [*inputs, helper.make_tensor_value_info(given, whole, [])],
        [*outputs, helper.make_tensor_value_info(made, whole, [])],
        [*body.initializer, numpy_helper.from_array(np.array(1, np.int64), one)],
    )
    remove_unused(counted)
    values = [node.input[_VALUES + at] for at in handed_on]
    results = [*(names.free(f"{node.name}_{at}_at_last") for at in handed_on), found]
    graph.node.append(helper.make_node("Loop", [limit, goes_on, *values, start], results, body=counted))
    added = [(limit, np.array(most, np.int64)), (start, np.array(0, np.int64)), (goes_on, np.array(True))]
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in added)
    rounds = settled(found)
    del graph.node[-1]
    del graph.initializer[-len(added) :]
    return rounds


def _deciding(body: onnx.GraphProto) -> list[int]:
    """Return which of the values that a Loop hands on its condition depends on, in order."""
    makers = makers_of(body)
    places = {value.name: at for at, value in enumerate(body.input[_VALUES:])}
    waiting, seen, found = [body.output[0].name], set[str](), set[int]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in places:
            found.add(places[name])
            waiting.append(body.output[1 + places[name]].name)
        if name in makers:
            node = makers[name]
            waiting += node.input
            waiting += [
                read for inner in bodies_of(node) for part in graphs_of(inner) for n in part.node for read in n.input
            ]
    return sorted(found)


def _always_goes_on(body: onnx.GraphProto, settled: Settled) -> bool:
    """Tell whether a body hands on the condition that it got, or one that is the same for every image."""
    constants, makers, again = constants_of(body), makers_of(body), body.output[0].name
    while again in makers and makers[again].op_type in _COPIES:
        again = makers[again].input[0]
    if again in constants:
        return bool(numpy_helper.to_array(constants[again]).any())
    if again in makers or again in {value.name for value in body.input}:
        return bool(again == body.input[1].name)
    return bool(settled(again))


def _stack(graph: onnx.GraphProto, names: Names, values: list[str], target: str, axis: int) -> list[onnx.NodeProto]:
    """Return nodes that put what the rounds gave one behind another, along a new axis."""
    axes = integers_tensor(graph, names, f"{target}_axis", [axis])
    parts = [names.free(f"{target}_{number}") for number in range(len(values))]
    added = [
        helper.make_node("Unsqueeze", [value, axes], [part], names.free(f"{part}_unsqueeze"))
        for value, part in zip(values, parts, strict=True)
    ]
    return [*added, helper.make_node("Concat", parts, [target], names.free(f"{target}_concat"), axis=axis)]
