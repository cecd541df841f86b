"""In which unit a network wants its images, told by the normalisation that its graph begins with."""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt
import onnx
from onnx import external_data_helper, numpy_helper

from pipeline.onnx_models.graphs import constants_of, number
from pipeline.onnx_models.signature import takes_pixels

_CHANNELS = 3
_PIXEL_SCALES = (1 / 300, 1 / 100)  # from one to the other: what a network scales pixels of 0 to 255 by
_PIXEL_MEANS = (64.0, 160.0)  # what it subtracts from them; ImageNet's are 104 to 124, and 127.5 is usual
_UNIT_MEANS = (0.25, 0.65)  # what is subtracted from images of 0 to 1: ImageNet's are 0.406 to 0.485, and 0.5 is usual
_UNIT_SCALES = (1.5, 8.0)  # what they are multiplied by then: 1 / 0.225 for ImageNet, and 2 for a mean of 0.5
# Gather and Slice exchange red and blue.
_PASSING = ("Cast", "Transpose", "Identity", "Reshape", "Unsqueeze", "Gather", "Slice")

_Numbers = npt.NDArray[np.float64]
_Affine = tuple[_Numbers, _Numbers]  # factor and offset, each of one number or one per channel


class InputUnit(Enum):
    """What an image holds that a network normalises itself; the value completes a message."""

    PIXELS = "pixels of 0 to 255"
    SHARES = "images of 0 to 1"


def unit_of(model: onnx.ModelProto) -> InputUnit | None:
    """Return in which unit a file's one image input is that the network normalises itself; None where nothing tells.

    It is pixels where the type is one of integers, where all that reads the input scales it by about 1/255 or 1/127.5,
    as Keras's Rescaling layers do, or subtracts about 64 to 160, as Keras's Normalization layers, a first batch norm
    and preprocessing that was merged into the graph do. It is images of 0 to 1 where about a half is subtracted and the
    rest multiplied by 2 or more, as torchvision's Normalize does.
    """
    constants = constants_of(model.graph)
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        return None
    if takes_pixels(inputs[0]):
        return InputUnit.PIXELS
    found = {_unit(affine) for affine in _normalisations(model.graph, constants, inputs[0].name, None)}
    return found.pop() if len(found) == 1 else None


def _unit(affine: _Affine | None) -> InputUnit | None:
    """Return what images become normalised ones by factor * image + offset."""
    if affine is None or not (affine[0] > 0).all():
        return None
    factor, offset = affine
    mean = -offset / factor
    if _within(factor, _PIXEL_SCALES) or _within(mean, _PIXEL_MEANS):
        return InputUnit.PIXELS
    return InputUnit.SHARES if _within(mean, _UNIT_MEANS) and _within(factor, _UNIT_SCALES) else None


def _within(values: _Numbers, limits: tuple[float, float]) -> bool:
    return bool(((values >= limits[0]) & (values <= limits[1])).all())


def _normalisations(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto], name: str, before: _Affine | None
) -> list[_Affine | None]:
    """Return what is computed of a tensor, channel by channel, at the end of each chain of operators that do only that.

    None stands for a chain that begins with another operator. A chain ends as soon as it tells the unit.
    """
    if _unit(before) is not None:
        return [before]
    found: list[_Affine | None] = []
    for node in [node for node in graph.node if name in node.input]:
        if node.op_type in _PASSING and node.input[0] == name:
            found += _normalisations(graph, constants, node.output[0], before)
            continue
        step = _affine(node, constants, name)
        if step is None:
            found.append(before)
            continue
        factor, offset = before or (np.ones(1), np.zeros(1))
        found += _normalisations(graph, constants, node.output[0], (step[0] * factor, step[0] * offset + step[1]))
    return found or [before]


def _affine(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], name: str) -> _Affine | None:
    """Return what a node multiplies each channel by, and what it adds then; None where it does something else."""
    others = [_numbers(constants.get(each)) for each in node.input if each != name]
    if any(other is None for other in others) or not others:
        return None
    values = [other for other in others if other is not None]
    if node.op_type == "BatchNormalization" and len(values) == 4:
        scale, bias, mean, variance = values
        factor = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
        # Of smaller means it may be a layer like any other, behind a normalisation outside the graph.
        return (factor, bias - mean * factor) if _within(mean, _PIXEL_MEANS) else None
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(values) != 1:
        return None
    one, zero, other = np.ones(1), np.zeros(1), values[0]
    if node.op_type in ("Div", "Sub") and (node.input[0] != name or (node.op_type == "Div" and not other.all())):
        return None
    steps = {"Mul": (other, zero), "Add": (one, other), "Sub": (one, -other)}
    return steps[node.op_type] if node.op_type in steps else (1 / other, zero)


def _numbers(tensor: onnx.TensorProto | None) -> _Numbers | None:
    """Return a constant of one number, or one per channel; None of any other, and of one that lies beside the file."""
    if tensor is None or external_data_helper.uses_external_data(tensor):
        return None
    values: _Numbers = numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
    return values if len(values) in (1, _CHANNELS) else None
