"""QuantizeLinear and DequantizeLinear in torch, with gradients through the rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Tensor = torch.Tensor


class _Round(torch.autograd.Function):
    """Rounding to whole numbers, whose gradient is that of the identity (straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return torch.round(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def round_through(values: Tensor) -> Tensor:
    """Return values rounded, half to even, with the gradient of the values themselves.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv:1308.3432).
    """
    rounded: Tensor = _Round.apply(values)  # type: ignore[no-untyped-call]
    return rounded


def _scale_shape(values: Tensor, scale: Tensor, axis: int) -> list[int]:
    """Return the shape of a quantizer's scale beside the values it scales."""
    return [-1 if scale.ndim and at == axis % values.ndim else 1 for at in range(values.ndim)]


def quantize(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Tensor:
    """Return the levels of values as floats, clamped to the integer type of the zero point.

    Args:
        attributes: `axis` of a scale per channel, 1 where it is not given.
        inputs: values, any shape; scale and zero point, scalars or [channels].

    Source: QuantizeLinear, ONNX opset 13: round half to even, then saturate.
    """
    values, scale, zero = inputs
    shape = _scale_shape(values, scale, attributes.get("axis", 1))
    limits = torch.iinfo(zero.dtype)
    levels = round_through(values / scale.reshape(shape)) + zero.float().reshape(shape)
    return torch.clamp(levels, limits.min, limits.max)


def dequantize(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> Tensor:
    """Return the values of levels.

    Args:
        attributes: as of `quantize`.
        inputs: levels, any shape; scale; zero point, or nothing for zero.

    Source: DequantizeLinear, ONNX opset 13.
    """
    levels, scale = inputs[:2]
    shape = _scale_shape(levels, scale, attributes.get("axis", 1))
    if len(inputs) > 2:
        levels = levels.float() - inputs[2].float().reshape(shape)
    scaled: Tensor = levels.float() * scale.reshape(shape)
    return scaled
