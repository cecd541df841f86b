"""LayerNormalization spelled out in single operators, recognised by what it computes, whatever the spelling.

Exporters and libraries write the variance as E[(x - m)^2] or E[x^2] - m^2, the root as Sqrt, Pow or Reciprocal, and put
scale and bias in any order. ONNX Runtime's optimizer knows one of these spellings. As one operator, its scale can be
changed together with the weights behind it, and runtimes compute it in one pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import (
    Names,
    add_constant,
    constants_of,
    integer,
    integers,
    is_large,
    readers_of,
    remove_unused,
    replace_nodes,
    shapes_of,
)

_Float64 = npt.NDArray[np.float64]
_MEANS = ("ReduceMean", "ReduceSum")
_REDUCTIONS: dict[str, Callable[..., _Float64]] = {
    "ReduceMean": np.mean,
    "ReduceSum": np.sum,
    "ReduceMin": np.min,
    "ReduceMax": np.max,
}
_OPERATORS: dict[str, Callable[..., _Float64]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Neg": np.negative,
    "Abs": np.abs,
    "Max": lambda *values: functools.reduce(np.maximum, values),
    "Clip": lambda values, low=-np.inf, high=np.inf: np.clip(values, low, high),
    "Identity": np.positive,
    "Equal": np.equal,  # of the least and the largest value, where jax takes the variance as 0
    "And": np.logical_and,
    "Where": np.where,
}
_MOST_NODES = 32  # of one norm; the longest spelling that was seen has 18
_LARGEST_EPSILON = 0.1
_EXACT = 1e-6  # of the largest value, to which what is found has to agree in float64; epsilon is float32
# Spread and mean of the rows that are tried; the small spreads tell epsilon, the large ones a limit to the values.
_ROWS = (
    *((1.0, 0.0), (3.0, 1.0), (0.3, -1.0), (0.02, 0.1), (0.001, 0.02), (2.0, -2.0), (0.1, 0.0), (0.005, 0.0)),
    *((1e3, -1e3), (1e6, 0.0), (0.0, 0.5)),
)


@dataclass(frozen=True)
class _Norm:
    """y = scale * (x - mean) / sqrt(variance + epsilon) + bias, over the last axis."""

    scale: _Float64  # [channels]
    bias: _Float64  # [channels]
    epsilon: float


def use_layer_norms(model: onnx.ModelProto) -> None:
    """Write norms over the last axis that are spelled out as LayerNormalization, in place."""
    sources = _sources(model.graph)
    if not sources:
        return
    shapes, names = shapes_of(model), Names(model)
    constants = {name: _values(tensor) for name, tensor in constants_of(model.graph).items()}
    for source in sources:
        sizes = shapes.get(source, [])
        channels = sizes[-1] if sizes else None
        if not isinstance(channels, int) or channels < 2:
            continue
        region = _region(model.graph, source, constants, len(sizes))
        for last in range(len(region) - 1, -1, -1):
            part = _needed(region[: last + 1])
            found = _recognise(part, source, constants, channels, len(sizes))
            if found is not None:
                _replace(model.graph, names, source, region[last], found)
                break
    remove_unused(model.graph)


def _sources(graph: onnx.GraphProto) -> list[str]:
    """Return the tensors whose mean is taken and from which more is computed, in the order of the graph."""
    readers = readers_of(graph)
    return [
        name
        for name in dict.fromkeys(node.input[0] for node in graph.node if node.op_type in _MEANS)
        if len(readers[name]) > 1
    ]


def _values(tensor: onnx.TensorProto) -> _Float64 | None:
    """Return the values of a constant that may be part of a norm."""
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64) or is_large(tensor):
        return None
    return numpy_helper.to_array(tensor).astype(np.float64)


def _region(
    graph: onnx.GraphProto, source: str, constants: Mapping[str, _Float64 | None], rank: int
) -> list[onnx.NodeProto]:
    """Return the operators that compute from a tensor and constants alone, over the last axis or value by value."""
    inside, found = {source}, []
    for node in graph.node:
        reads = [name for name in node.input if name]
        if not inside.intersection(reads) or not all(name in inside or name in constants for name in reads):
            continue
        if node.op_type not in _OPERATORS and not (
            node.op_type in _REDUCTIONS and _is_over_last(node, constants, rank)
        ):
            continue
        inside.update(node.output)
        found.append(node)
        if len(found) == _MOST_NODES:
            break
    return found


def _is_over_last(node: onnx.NodeProto, constants: Mapping[str, _Float64 | None], rank: int) -> bool:
    axes = integers(node, "axes")
    if axes is None and len(node.input) > 1:
        given = constants.get(node.input[1])
        axes = None if given is None else [int(axis) for axis in given.reshape(-1)]
    return axes is not None and [axis % rank for axis in axes] == [rank - 1] and integer(node, "keepdims", 1) == 1


def _needed(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return what the last of some operators depends on, itself included."""
    wanted, kept = {nodes[-1].output[0]}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _recognise(
    nodes: Sequence[onnx.NodeProto],
    source: str,
    constants: Mapping[str, _Float64 | None],
    channels: int,
    rank: int,
) -> _Norm | None:
    """Return the norm that some operators compute; None where it is none."""
    if not any(node.op_type in _MEANS for node in nodes):
        return None
    noise = np.random.default_rng(0).normal(size=(len(_ROWS), channels))
    rows = noise * np.array([[spread] for spread, _ in _ROWS]) + np.array([[mean] for _, mean in _ROWS])
    try:
        with np.errstate(all="ignore"):
            answers = _compute(nodes, rows.reshape(-1, *[1] * (rank - 2), channels), source, constants)
            answers = answers.reshape(rows.shape)
    except ValueError:  # constants of other shapes
        return None
    if not np.isfinite(answers).all():
        return None
    values = [constants.get(name) for node in nodes for name in node.input]
    epsilons = {float(value.reshape(-1)[0]) for value in values if value is not None and value.size == 1}
    for epsilon in sorted(each for each in epsilons if 0 < each < _LARGEST_EPSILON):
        found = _fit(rows, answers, epsilon)
        if found is not None:
            return found
    return None


def _compute(
    nodes: Sequence[onnx.NodeProto], rows: _Float64, source: str, constants: Mapping[str, _Float64 | None]
) -> _Float64:
    values: dict[str, _Float64] = {source: rows}
    values.update({name: value for name, value in constants.items() if value is not None})
    for node in nodes:
        if node.op_type in _REDUCTIONS:
            result = np.asarray(_REDUCTIONS[node.op_type](values[node.input[0]], axis=-1, keepdims=True))
        else:
            result = np.asarray(_OPERATORS[node.op_type](*(values[name] for name in node.input if name)))
        values[node.output[0]] = result
    answers = values[nodes[-1].output[0]]
    if answers.shape != rows.shape:
        raise ValueError("another shape than the rows")
    return answers


def _fit(rows: _Float64, answers: _Float64, epsilon: float) -> _Norm | None:
    """Return scale and bias with which a norm of this epsilon gives the answers; None where no norm does."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
    away = normal - normal.mean(axis=0)
    scale = (away * answers).sum(axis=0) / (away**2).sum(axis=0)
    bias = answers.mean(axis=0) - scale * normal.mean(axis=0)
    error = np.abs(scale * normal + bias - answers).max()
    if not error <= _EXACT * np.abs(answers).max() or not np.abs(scale).max() > 0:
        return None
    return _Norm(scale, bias, epsilon)


def _replace(graph: onnx.GraphProto, names: Names, source: str, last: onnx.NodeProto, norm: _Norm) -> None:
    """Let a LayerNormalization give the output of the last operator of a norm."""
    target = last.output[0]
    scale = add_constant(graph, names, f"{target}_scale", norm.scale.astype(np.float32))
    bias = add_constant(graph, names, f"{target}_bias", norm.bias.astype(np.float32))
    made = helper.make_node(
        "LayerNormalization", [source, scale, bias], [target], last.name, axis=-1, epsilon=norm.epsilon
    )
    replace_nodes(graph, [made if node.output[:] == [target] else node for node in graph.node])
