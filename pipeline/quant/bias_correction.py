"""Bias correction: what rounding the weights adds to a layer's mean output is taken from its bias.

Rounded weights W' turn the mean output of a channel from W m + b into W' m + b, where m is the mean input, measured on
the calibration images. The bias b + (W - W') m gives the float layer's mean back, at no cost when the model runs.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), 4.2,
with measured means in the place of those of batch norms.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from pipeline.onnx_models.graphs import attributes_of, makers_of, readers_of
from pipeline.quant.graphs import MATRIX, WEIGHTED, constants
from pipeline.quant.neighbours import row_chunks

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def correct_biases(
    int8: onnx.ModelProto,
    float32: onnx.ModelProto,
    means: Mapping[str, Float64],
    measured: Mapping[str, Float64] | None = None,
) -> dict[str, float]:
    """Correct the biases of a QDQ model in place.

    Args:
        int8: what `qdq.insert_qdq` made of `float32`.
        float32: the float model.
        means: float64 [channels] by tensor name: the mean input of each layer over images and pixels.
        measured: float64 [output channels] by layer: what its mean output lacks, where that was measured
            directly (the means treat padding as more of the feature map); NaN where it was not.

    Returns:
        By name of each corrected layer the largest correction, in units of its output. Layers in float, without a bias
        or without a known mean are left out.
    """
    graph = Dequantized(int8)
    weights = constants(float32)
    readers = readers_of(float32.graph)
    corrected = {}
    for layer in float32.graph.node:
        node = graph.nodes.get(layer.name)
        if layer.op_type not in WEIGHTED or layer.input[0] not in means or node is None:
            continue
        if layer.input[1] not in weights or not _has_bias(layer, readers, weights):
            continue
        correction = (measured or {}).get(layer.name)
        if not graph.is_dequantized(node.input[1]):
            continue
        if correction is None or np.isnan(correction).any():
            by_means = _by_means(layer, weights[layer.input[1]], graph, node.input[1], means[layer.input[0]])
            correction = by_means if correction is None else np.where(np.isnan(correction), by_means, correction)
        if layer.op_type == "MatMul":
            is_added = graph.add_to_sum(readers[layer.output[0]][0].name, correction)
        else:
            is_added = graph.add_to_bias(node.input[2], correction)
        if is_added:
            corrected[layer.name] = float(np.abs(correction).max())
    return corrected


def _has_bias(
    layer: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], weights: Mapping[str, onnx.TensorProto]
) -> bool:
    """Tell whether a layer has a bias: an input of its own, or of a MatMul a vector that is added to all it makes."""
    if layer.op_type != "MatMul":
        return len(layer.input) == 3
    after = readers.get(layer.output[0], [])
    if [node.op_type for node in after] != ["Add"] or len(weights[layer.input[1]].dims) != 2:
        return False
    outputs = weights[layer.input[1]].dims[1]
    return any(list(weights[name].dims) == [outputs] for name in after[0].input if name in weights)


def _by_means(layer: onnx.NodeProto, float32: onnx.TensorProto, int8: Dequantized, name: str, mean: Float64) -> Float64:
    """Return by how much rounding a layer's weights lowers its mean output: float64 [output channels].

    Some outputs at a time: in float64, the weights of a wide layer take many times their memory.

    Args:
        float32: its weights.
        name: of the same in the QDQ model.
        mean: float64 [channels], its mean input.
    """
    stored = numpy_helper.to_array(float32)
    axis = 0 if layer.op_type == "Conv" or attributes_of(layer).get("transB") else 1
    found = np.empty(stored.shape[axis])
    in_groups = attributes_of(layer).get("group", 1) > 1
    for part in [slice(None)] if in_groups else row_chunks((len(found), stored.size // len(found))):
        rounded = int8.dequantized(name, part, axis)
        assert rounded is not None, "it is dequantized"
        exact = stored[(slice(None),) * axis + (part,)].astype(np.float64)
        found[part] = _mean_error(layer, exact - rounded, mean)
    return found


def _mean_error(layer: onnx.NodeProto, error: Float64, mean: Float64) -> Float64:
    """Return by how much rounding its weights lowers a layer's mean output: float64 [output channels]."""
    attributes = attributes_of(layer)
    if layer.op_type in MATRIX:
        of_gemm: Float64 = (error if attributes.get("transB") else error.T) @ mean
        return of_gemm
    groups = attributes.get("group", 1)
    by_group = error.sum(axis=tuple(range(2, error.ndim))).reshape(groups, -1, error.shape[1])
    of_conv: Float64 = np.einsum("goi,gi->go", by_group, mean.reshape(groups, -1)).reshape(-1)
    return of_conv


class Dequantized:
    """A QDQ model's constants, as its layers see them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self.nodes = {node.name: node for node in model.graph.node}
        self._makers = makers_of(model.graph)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def is_dequantized(self, name: str) -> bool:
        """Tell whether a tensor is a dequantized constant."""
        maker = self._makers.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in self._constants

    def dequantized(self, name: str, part: slice = slice(None), along: int = 0) -> Float64 | None:
        """Return the value of a dequantized constant, or None if `name` is none.

        Args:
            part: what of it, along an axis.
        """
        if not self.is_dequantized(name):
            return None
        maker = self._makers[name]
        stored = numpy_helper.to_array(self._constants[maker.input[0]])
        scale = self._scale(maker)
        if scale.ndim:
            axis = next((each.i for each in maker.attribute if each.name == "axis"), 1) % stored.ndim
            scale = scale.reshape([-1 if at == axis else 1 for at in range(stored.ndim)])
            scale = scale[(slice(None),) * along + (part,)] if scale.shape[along] > 1 else scale
        return stored[(slice(None),) * along + (part,)].astype(np.float64) * scale

    def constants_of(self, layer: str) -> list[Float32] | None:
        """Return a layer's weights and bias as float32, or None where it has none in int8."""
        node = self.nodes.get(layer)
        if node is None or not self.is_dequantized(node.input[1]):
            return None
        found = []
        for name in node.input[1:]:
            value = self.dequantized(name)
            if value is None:
                value = numpy_helper.to_array(self._constants[name])
            found.append(value.astype(np.float32))
        return found

    def add_to_bias(self, name: str, correction: Float64) -> bool:
        """Add to a bias, in float or as the int32 that a dequantizer reads; False where it is neither."""
        if name not in self._makers and name in self._constants:
            self._replace(name, numpy_helper.to_array(self._constants[name]) + correction)
            return True
        if not self.is_dequantized(name):
            return False
        maker = self._makers[name]
        values = numpy_helper.to_array(self._constants[maker.input[0]])
        limits = np.iinfo(values.dtype)
        steps = np.round(values + correction / self._scale(maker))
        self._replace(maker.input[0], np.clip(steps, limits.min, limits.max))
        return True

    def add_to_sum(self, name: str, correction: Float64) -> bool:
        """Add to the float constant that an Add adds, which others may read as it was; False where it adds none."""
        node = self.nodes.get(name)
        for position, constant in enumerate(node.input if node is not None else ()):
            if node is not None and constant in self._constants:
                values = numpy_helper.to_array(self._constants[constant]) + correction
                made = numpy_helper.from_array(values.astype(np.float32), f"{name}.corrected")
                self._graph.initializer.append(made)
                node.input[position] = made.name
                return True
        return False

    def _scale(self, dequantizer: onnx.NodeProto) -> Float64:
        return numpy_helper.to_array(self._constants[dequantizer.input[1]]).astype(np.float64)

    def _replace(self, name: str, values: Float64) -> None:
        tensor = self._constants[name]
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(kind), name))
