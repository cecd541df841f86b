"""In which unit a network wants its images: the graph's own normalisation, as exporters and mergers write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, external_data_helper
from onnx_fixtures import WEIGHT, Constants, Float32, flat, node, save

from pipeline.onnx_models.input_units import InputUnit, unit_of

PIXELS, SHARES = InputUnit.PIXELS, InputUnit.SHARES
MEAN: Float32 = np.array([0.485, 0.456, 0.406], np.float32)
STD: Float32 = np.array([0.229, 0.224, 0.225], np.float32)


def per_channel(values: npt.ArrayLike) -> Float32:
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def unit(path: Path, steps: Sequence[onnx.NodeProto], constants: Constants, kind: int = TensorProto.FLOAT) -> object:
    """Return the unit of a network that convolves `s`, which `steps` make of `x`."""
    nodes = flat(*steps, node("Conv", "s w", "a"))
    return unit_of(onnx.load(save(path / "m.onnx", nodes, constants={"w": WEIGHT, **constants}, kind=kind)))


@pytest.mark.parametrize(
    ("steps", "first", "second", "found"),
    [
        ("Mul Add", 1 / 127.5, -1, PIXELS),  # Keras's Rescaling
        ("Div Sub", 255, 0.5, PIXELS),
        ("Sub Div", MEAN * 255, STD * 255, PIXELS),  # Keras's Normalization, and preprocessing merged into the graph
        ("Sub Mul", 127.5, 0.0078125, PIXELS),  # insightface's
        ("Add Identity", [-103.939, -116.779, -123.68], 1, PIXELS),  # Caffe's
        ("Sub Div", MEAN, STD, SHARES),  # torchvision's Normalize in front of the network
        ("Sub Mul", MEAN, 1 / STD, SHARES),
        ("Mul Sub", 2, 1, SHARES),  # TensorFlow Hub's
        ("Sub Div", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], SHARES),
        ("Mul Add", [0.458, 0.448, 0.45], [-0.03, -0.088, -0.188], None),  # inception_v3's: of normalised images
        ("Sub Identity", 0.5, 1, None),
        ("Mul Add", 1.1, 0.2, None),
        ("Div Sub", 0, 1, None),
    ],
)
def test_unit_of_follows_from_what_the_graph_does_first(
    tmp_path: Path, steps: str, first: npt.ArrayLike, second: npt.ArrayLike, found: InputUnit | None
) -> None:
    one, two = steps.split()
    nodes = [node(one, "x first", "t"), node(two, "t" if two == "Identity" else "t second", "s")]
    assert unit(tmp_path, nodes, {"first": per_channel(first), "second": per_channel(second)}) is found


@pytest.mark.parametrize(("mean", "variance", "found"), [(120.0, 3300.0, PIXELS), (0.45, 0.05, None)])
def test_unit_of_a_first_batch_norm_is_pixels_where_their_mean_is(
    tmp_path: Path, mean: float, variance: float, found: InputUnit | None
) -> None:
    """MXNet's networks begin with one, `bn_data`; a small mean may be of a layer like any other."""
    values = {"g": 1.0, "b": 0.0, "m": mean, "v": variance}
    constants = {name: np.full(3, value, np.float32) for name, value in values.items()}
    assert unit(tmp_path, [node("BatchNormalization", "x g b m v", "s")], constants) is found


def test_unit_of_sees_through_an_exchange_of_red_and_blue(tmp_path: Path) -> None:
    nodes = [node("Gather", "x order", "bgr", axis=1), node("Sub", "bgr mean", "s")]
    order = np.array([2, 1, 0])
    assert unit(tmp_path, nodes, {"order": order, "mean": per_channel([103.9, 116.8, 123.7])}) is PIXELS


def test_unit_of_is_unknown_where_the_readers_of_the_input_differ(tmp_path: Path) -> None:
    nodes = [node("Sub", "x mean", "t"), node("Relu", "x", "r"), node("Add", "t r", "s")]
    assert unit(tmp_path, nodes, {"mean": per_channel(MEAN * 255)}) is None


def test_unit_of_uint8_is_pixels_whatever_reads_them(tmp_path: Path) -> None:
    assert unit(tmp_path, [node("Cast", "x", "s", to=TensorProto.FLOAT)], {}, TensorProto.UINT8) is PIXELS


def test_unit_of_is_unknown_where_the_numbers_lie_beside_the_file(tmp_path: Path) -> None:
    nodes = flat(node("Sub", "x mean", "s"), node("Conv", "s w", "a"))
    model = onnx.load(save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT, "mean": per_channel(MEAN * 255)}))
    external_data_helper.convert_model_to_external_data(model, location="m.data", size_threshold=0)
    onnx.save(model, tmp_path / "external.onnx")
    assert unit_of(onnx.load(tmp_path / "external.onnx", load_external_data=False)) is None
    assert unit_of(onnx.load(tmp_path / "external.onnx")) is PIXELS
