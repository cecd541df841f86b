"""Channels behind gates (SiLU, HardSwish, squeeze-and-excitation) are scaled to similar ranges, by a factor each.

No factor passes such an activation, so `equalization` cannot move it into the layer before. Here it is a multiplication
of its own between the activation and its quantizer, where runtimes that compute gates within the convolution before
them compute this too; the convolutions that read the product take the factor into their weights. In a trained
EfficientNet-B0 the widest channel of the first SiLU reaches 122 and most stay below 3: with one scale for all, what
most channels hold is rounded to a few steps, and the int8 model answers at random (0.9 dB; with these factors 11 dB
before rounding and bias correction).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from pipeline.onnx_models.graphs import Names, readers_of
from pipeline.quant.float_parts import float_parts
from pipeline.quant.graphs import activation_shapes, constants
from pipeline.quant.streams import FACTORS, WeightEditor, find_streams, is_channelwise, multiply_inputs

Float64 = npt.NDArray[np.float64]

# Exponents of the ratio of a channel's range to the widest: a depthwise convolution has weights, and scales of weights,
# for each channel, so that they lose nothing by a factor; other layers' weights lose what the activations gain.
_OF_DEPTHWISE, _OF_LAYERS = 0.75, 0.5
_LEAST_RATIO = 1e-3  # a channel that is rarely active must not get huge weights
# Of the noise of the quantizer, seen from the channels: with more left, the multiplication is not worth its time.
_NOISE_LEFT = 0.5


def gated_tensors(model: onnx.ModelProto, wanted: Collection[str]) -> dict[str, list[onnx.NodeProto]]:
    """Return the tensors of `wanted` that gates make and only convolutions read, and these."""
    in_float = float_parts(model, gates=True).nodes - float_parts(model).nodes
    if not in_float:
        return {}
    known, readers, shapes = constants(model), readers_of(model.graph), activation_shapes(model)
    kept = {value.name for value in model.graph.output}
    kept.update(name for stream in find_streams(model, FACTORS) for name in stream.tensors)  # which `equalize` scales
    found = {}
    for node in model.graph.node:
        for name in set(node.output) & set(wanted) - kept if node.name in in_float else ():
            convolutions = readers.get(name, [])
            absorb = all(each.op_type == "Conv" and each.input[1] in known for each in convolutions)
            if convolutions and absorb and len(shapes.get(name, ())) == 4:
                found[name] = convolutions
    return found


def scale_gates(model: onnx.ModelProto, largest: Mapping[str, Float64]) -> dict[str, float]:
    """Scale the channels of what gates make, in place, where that leaves less than half of the quantizer's noise.

    Args:
        model: float32, batch norms folded.
        largest: float64 [channels] by tensor name, the largest magnitude of each channel.

    Returns:
        By tensor, the share of the noise of its quantizer that is left.
    """
    known, names, editor = constants(model), Names(model), WeightEditor(model)
    made: dict[str, onnx.NodeProto] = {}
    left = {}
    for name, convolutions in gated_tensors(model, largest).items():
        strength = _OF_DEPTHWISE if all(is_channelwise(each, known) for each in convolutions) else _OF_LAYERS
        if not largest[name].any():
            continue
        factors = np.maximum(largest[name] / largest[name].max(), _LEAST_RATIO) ** strength
        noise = float(np.square(factors).mean())
        if noise > _NOISE_LEFT:
            continue
        scaled = names.free(f"{name}_scaled")
        for each in convolutions:
            multiply_inputs(editor, each, factors)
            each.input[0] = scaled
        of_channels = numpy_helper.from_array(
            (1 / factors).astype(np.float32)[:, None, None], names.free(f"{name}_factors")
        )
        model.graph.initializer.append(of_channels)
        made[name] = helper.make_node("Mul", [name, of_channels.name], [scaled], names.free(f"{name}_scaling"))
        left[name] = noise
    for index in reversed(range(len(model.graph.node))):
        for name in model.graph.node[index].output:
            if name in made:
                model.graph.node.insert(index + 1, made[name])
    editor.finish()
    return left


def has_scaled_gates(model: onnx.ModelProto) -> bool:
    """Tell whether the channels of a gate are scaled; with the gate in int8, they would be rounded before that."""
    known, in_float = constants(model), float_parts(model, gates=True).nodes - float_parts(model).nodes
    return any(
        node.op_type == "Mul" and node.name in in_float and is_channelwise(node, known) for node in model.graph.node
    )
