"""ONNX operators in torch, those of image classifiers: from attributes and input tensors to output tensors.

Batches may be of any size. An operator, or a form of one, that is not here raises UnsupportedError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from pipeline.learn.quantizers import dequantize, quantize

Tensor = torch.Tensor
Attributes = Mapping[str, Any]
Outputs = Tensor | tuple[Tensor, ...]
Operator = Callable[[Attributes, Sequence[Any]], Outputs]  # an input that is left out is None

_FLOAT, _DOUBLE, _INT64 = 1, 11, 7  # onnx.TensorProto
_TYPES = {_FLOAT: torch.float32, _DOUBLE: torch.float64, _INT64: torch.int64, 2: torch.uint8, 3: torch.int8}


class UnsupportedError(Exception):
    """A network holds something that is not computed here; the text names it."""


def _pads(attributes: Attributes, axes: int) -> tuple[list[int], list[int]]:
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnsupportedError(f"auto_pad {attributes['auto_pad'].decode()}")
    pads = list(attributes.get("pads", [0] * 2 * axes))
    return pads[:axes], pads[axes:]


def _padded(values: Tensor, before: Sequence[int], after: Sequence[int], fill: float) -> Tensor:
    """Return values padded along their last axes."""
    widths = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
    return functional.pad(values, widths, value=fill) if any(widths) else values


def _conv(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    values, weights = inputs[:2]
    axes = weights.ndim - 2
    if axes not in (1, 2):
        raise UnsupportedError(f"convolutions over {axes} axes")
    before, after = _pads(attributes, axes)
    if before != after:
        values, before = _padded(values, before, after, 0.0), [0] * axes
    convolve: Callable[..., Tensor] = functional.conv1d if axes == 1 else functional.conv2d
    bias = inputs[2] if len(inputs) > 2 else None
    ones = [1] * axes
    strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
    return convolve(values, weights, bias, strides, before, dilations, attributes.get("group", 1))


def _gemm(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    left = inputs[0].t() if attributes.get("transA", 0) else inputs[0]
    right = inputs[1].t() if attributes.get("transB", 0) else inputs[1]
    product: Tensor = left @ right * attributes.get("alpha", 1.0)
    added = len(inputs) > 2 and inputs[2] is not None
    return product + inputs[2] * attributes.get("beta", 1.0) if added else product


def _clip(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    low, high = (inputs[at] if at < len(inputs) else None for at in (1, 2))
    low, high = attributes.get("min", low), attributes.get("max", high)
    if low is None and high is None:
        clipped: Tensor = inputs[0]
    else:
        bounds = [None if each is None else float(each) for each in (low, high)]
        clipped = torch.clamp(inputs[0], *bounds)
    return clipped


def _pool(attributes: Attributes, inputs: Sequence[Any], *, largest: bool) -> Tensor:
    values, kernel = inputs[0], list(attributes["kernel_shape"])
    before, after = _pads(attributes, len(kernel))
    if len(kernel) != 2 or attributes.get("ceil_mode", 0):
        raise UnsupportedError("pooling over other than two axes, or with ceil_mode")
    strides = list(attributes.get("strides", [1, 1]))
    if largest:
        padded = _padded(values, before, after, float("-inf"))
        return functional.max_pool2d(padded, kernel, strides, 0, list(attributes.get("dilations", [1, 1])))
    if attributes.get("dilations", [1, 1]) != [1, 1]:
        raise UnsupportedError("average pooling with dilations")
    pooled = functional.avg_pool2d(_padded(values, before, after, 0.0), kernel, strides)
    if attributes.get("count_include_pad", 0) or not any((*before, *after)):
        return pooled
    ones = torch.ones_like(values[:1, :1])
    return pooled / functional.avg_pool2d(_padded(ones, before, after, 0.0), kernel, strides)


def _axes(attributes: Attributes, inputs: Sequence[Any]) -> list[int] | None:
    """Return the axes that an attribute names up to opset 12, and an input from 13 (ReduceMean: 18)."""
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1]]
    return list(attributes["axes"]) if "axes" in attributes else None


def _reduce(attributes: Attributes, inputs: Sequence[Any], how: str) -> Tensor:
    axes = _axes(attributes, inputs)
    keep = bool(attributes.get("keepdims", 1))
    if axes is None:
        if attributes.get("noop_with_empty_axes", 0):
            raise UnsupportedError("a reduction over no axis")
        axes = list(range(inputs[0].ndim))
    reduced: Tensor = getattr(torch, how)(inputs[0], dim=axes, keepdim=keep)
    return reduced


def _reshape(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    values, sizes = inputs[0], [int(size) for size in inputs[1]]
    if not attributes.get("allowzero", 0):
        sizes = [values.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    # Files with a batch of one write it as a number.
    if sizes and sizes[0] == 1 and len(values) > 1 and -1 not in sizes[1:]:
        sizes[0] = len(values)
    reshaped: Tensor = values.reshape(sizes)
    return reshaped


def _squeeze(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    values, axes = inputs[0], _axes(attributes, inputs)
    kept = [axis for axis in range(1, values.ndim) if values.shape[axis] == 1]  # axis 0 counts images
    return torch.squeeze(values, tuple(kept if axes is None else axes))


def _unsqueeze(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    axes, values = _axes(attributes, inputs) or [], inputs[0]
    rank = values.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        values = values.unsqueeze(axis)
    return values  # type: ignore[no-any-return]


def _pad(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    if attributes.get("mode", b"constant") != b"constant" or len(inputs) > 3:
        raise UnsupportedError("Pad of another mode than constant, or with axes")
    widths = [int(width) for width in inputs[1]]
    fill = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    return _padded(inputs[0], widths[: len(widths) // 2], widths[len(widths) // 2 :], fill)


def _concat(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    largest = max(len(each) for each in inputs)
    axis = attributes["axis"]
    if inputs[0].ndim > 1 and axis % inputs[0].ndim:  # constants with a batch of one beside activations
        inputs = [each.expand(largest, *each.shape[1:]) for each in inputs]
    return torch.cat(list(inputs), axis)


def _split(attributes: Attributes, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    sizes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("split")
    if sizes is None:
        raise UnsupportedError("Split without sizes")
    return torch.split(inputs[0], sizes, attributes.get("axis", 0))


def _slice(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    values, starts, ends = inputs[:3]
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    if any(step < 1 for step in steps):
        raise UnsupportedError("Slice backwards")
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        chosen: list[Any] = [slice(None)] * values.ndim
        chosen[axis] = slice(start, end, step)
        values = values[tuple(chosen)]
    return values  # type: ignore[no-any-return]


def _gather(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    values, places = inputs
    axis = attributes.get("axis", 0) % values.ndim
    flat = torch.index_select(values, axis, places.reshape(-1) % values.shape[axis])
    return flat.reshape(*values.shape[:axis], *places.shape, *values.shape[axis + 1 :])


def _layer_norm(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    values = inputs[0]
    axes = values.shape[attributes.get("axis", -1) :]
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(values, axes, inputs[1], bias, attributes.get("epsilon", 1e-5))


def _batch_norm(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    values, scale, bias, mean, variance = inputs
    return functional.batch_norm(values, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _cast(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    if attributes["to"] not in _TYPES:
        raise UnsupportedError(f"Cast to type {attributes['to']}")
    cast: Tensor = inputs[0].to(_TYPES[attributes["to"]])
    return cast


def _shape(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    return torch.tensor(inputs[0].shape)[attributes.get("start", 0) : attributes.get("end")]


def _expand(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    sizes = np.broadcast_shapes(tuple(inputs[0].shape), tuple(inputs[1].tolist()))
    expanded: Tensor = inputs[0].expand(sizes)
    return expanded


def _gelu(attributes: Attributes, inputs: Sequence[Any]) -> Tensor:
    return functional.gelu(inputs[0], approximate=attributes.get("approximate", b"none").decode())


OPERATORS: Mapping[str, Operator] = {
    "Add": lambda attributes, inputs: inputs[0] + inputs[1],
    "AveragePool": lambda attributes, inputs: _pool(attributes, inputs, largest=False),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": dequantize,
    "Div": lambda attributes, inputs: inputs[0] / inputs[1],
    "Elu": lambda attributes, inputs: functional.elu(inputs[0], attributes.get("alpha", 1.0)),
    "Erf": lambda attributes, inputs: torch.erf(inputs[0]),
    "Expand": _expand,
    "Flatten": lambda attributes, inputs: inputs[0].flatten(attributes.get("axis", 1)),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda attributes, inputs: inputs[0].mean(tuple(range(2, inputs[0].ndim)), keepdim=True),
    "HardSigmoid": lambda attributes, inputs: torch.clamp(
        inputs[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": lambda attributes, inputs: functional.hardswish(inputs[0]),
    "Identity": lambda attributes, inputs: inputs[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda attributes, inputs: functional.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "MatMul": lambda attributes, inputs: inputs[0] @ inputs[1],
    "MaxPool": lambda attributes, inputs: _pool(attributes, inputs, largest=True),
    "Mul": lambda attributes, inputs: inputs[0] * inputs[1],
    "Pad": _pad,
    "Pow": lambda attributes, inputs: inputs[0] ** inputs[1],
    "QuantizeLinear": quantize,
    "ReduceMean": lambda attributes, inputs: _reduce(attributes, inputs, "mean"),
    "ReduceSum": lambda attributes, inputs: _reduce(attributes, inputs, "sum"),
    "Relu": lambda attributes, inputs: functional.relu(inputs[0]),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda attributes, inputs: torch.sigmoid(inputs[0]),
    "Slice": _slice,
    "Softmax": lambda attributes, inputs: torch.softmax(inputs[0], attributes.get("axis", -1)),
    "Split": _split,
    "Sqrt": lambda attributes, inputs: torch.sqrt(inputs[0]),
    "Squeeze": _squeeze,
    "Sub": lambda attributes, inputs: inputs[0] - inputs[1],
    "Tanh": lambda attributes, inputs: torch.tanh(inputs[0]),
    "Transpose": lambda attributes, inputs: inputs[0].permute(*attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
