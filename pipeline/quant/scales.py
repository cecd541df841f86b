"""Scales of int8 weights with an int32 bias: those of the weights alone, raised where the bias needs it.

A bias is stored in steps of input scale * weight scale. For a filter of zeros (folding a batch norm with gamma 0 leaves
one) any weight scale fits the weights; ONNX Runtime's tools take 1, which rounds the bias to whole steps of the input.
For a filter of very small weights the steps are so small that the bias would not fit in 32 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

Float32 = npt.NDArray[np.float32]

# Steps that a bias may take; the other half of int32 is for the sum of the products, 255 * 127 for each input.
_BIAS_STEPS = 2.0**30
_LEAST_STEP = 2.0**-100  # of a bias: float32 holds the product of the two scales, and its inverse


def least_scales(bias: Float32 | None, input_scale: float, outputs: int) -> npt.NDArray[np.float64]:
    """Return the smallest weight scales with which a bias fits in int32, sums of products included.

    Args:
        bias: float32 [outputs], or None.
        input_scale: of the layer's input, units a step.

    Returns:
        float64 [outputs], > 0. With it a bias has 30 bits, more than float32's mantissa.
    """
    magnitude = np.zeros(outputs) if bias is None else np.abs(bias.astype(np.float64))
    return np.maximum(magnitude / _BIAS_STEPS, _LEAST_STEP) / input_scale


def fit_to_bias(scales: Float32, weights: Float32, bias: Float32 | None, input_scale: float) -> Float32:
    """Return the scales of int8 weights that fit their bias.

    Args:
        scales: float32 [outputs], or [1] for the whole tensor: those of the weights alone.
        weights: float32 [outputs, inputs].
        bias: float32 [outputs], or None.
        input_scale: of the layer's input, units a step.

    Returns:
        float32, shaped as `scales` and never smaller, except where all weights are zero: there the smallest that the
        bias allows, or 1 where the bias is zero too.
    """
    least = least_scales(bias, input_scale, len(weights))
    empty = ~weights.any(axis=1)
    unused = empty if bias is None else empty & (bias == 0)
    if scales.size == 1 and len(weights) != 1:
        least, empty, unused = least.max(keepdims=True), empty.all(keepdims=True), unused.all(keepdims=True)
    found = np.where(empty, least, np.maximum(scales, least))
    fitted: Float32 = np.where(unused, 1.0, found).astype(np.float32)
    return fitted


def check_finite(layer: str, weights: Float32, bias: Float32 | None) -> None:
    """Raise DataError where weights or a bias hold NaN or Inf: no scale covers them."""
    for what, values in (("weights", weights), ("bias", bias)):
        if values is not None and not np.isfinite(values).all():
            raise DataError(f"layer {layer}: its {what} hold NaN or Inf; check the checkpoint")
