"""Inputs without all four axes of images: one image, grey ones, images as rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_fixtures import CHW, IMAGES, WEIGHT, Constants, Dims, flat, load_and_compare, node, operators, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier, input_units, signature
from pipeline.onnx_models.raw_file import RawFile

_, HEIGHT, WIDTH = CHW
ROW = 3 * HEIGHT * WIDTH
MEAN = np.array([0.1, 0.2, 0.3], np.float32)
CONSTANTS: Constants = {
    "w": WEIGHT,
    "mean": MEAN,
    "mean3": MEAN[:, None, None],
    "first": np.array([0]),
    "third": np.array([3]),
    "chw": np.array([1, *CHW]),
    "hwc": np.array([-1, HEIGHT, WIDTH, 3]),
    "nchw": np.array([-1, *CHW]),
    "factor": np.float32(2.0),
    "grey": WEIGHT[:, :1],
}
TO_FIRST = node("Transpose", "l", "i", perm=[0, 3, 1, 2])
CONV = node("Conv", "i w", "a")
# The axes of the input, what makes images of four axes of it, how many operators are left.
CASES: dict[str, tuple[Dims, list[onnx.NodeProto], list[str]]] = {
    "one image": (CHW, [node("Unsqueeze", "x first", "i"), CONV], ["Conv", "Flatten"]),
    "one image by a reshape": (CHW, [node("Reshape", "x chw", "i"), CONV], ["Conv", "Flatten"]),
    "one image less its mean": (
        CHW,
        [node("Sub", "x mean3", "d"), node("Unsqueeze", "d first", "i"), CONV],
        ["Sub", "Conv", "Flatten"],
    ),
    "one image, channels last": (
        (HEIGHT, WIDTH, 3),
        [
            node("Sub", "x mean", "d"),
            node("Transpose", "d", "t", perm=[2, 0, 1]),
            node("Unsqueeze", "t first", "i"),
            CONV,
        ],
        ["Sub", "Conv", "Flatten"],
    ),
    "one image, channels last, first its batch": (
        (HEIGHT, WIDTH, 3),
        [node("Unsqueeze", "x first", "l"), TO_FIRST, CONV],
        ["Conv", "Flatten"],
    ),
    "rows, channels first": (("N", ROW), [node("Reshape", "x nchw", "i"), CONV], ["Conv", "Flatten"]),
    "rows, channels last": (("N", ROW), [node("Reshape", "x hwc", "l"), TO_FIRST, CONV], ["Conv", "Flatten"]),
    "rows, scaled before": (
        (1, ROW),
        [node("Mul", "x factor", "s"), node("Reshape", "s hwc", "l"), TO_FIRST, CONV],
        ["Mul", "Conv", "Flatten"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_load_takes_images_without_all_axes(tmp_path: Path, name: str) -> None:
    """The batch is free: what stands for one image is gone."""
    dims, nodes, left = CASES[name]
    model = load_and_compare(save(tmp_path / "m.onnx", flat(*nodes), constants=CONSTANTS, dims=dims))
    assert [kind for kind in operators(model) if kind != "Transpose"] == left
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize("opset", [9, 13])
def test_load_takes_grey_images_without_an_axis_of_channels(tmp_path: Path, opset: int) -> None:
    added = node("Unsqueeze", "x", "i", axes=[1]) if opset < 13 else node("Unsqueeze", "x axis", "i")
    constants = {"w": WEIGHT[:, :1], **({} if opset < 13 else {"axis": np.array([1])})}
    path = save(tmp_path / "m.onnx", flat(added, CONV), opset, constants, dims=("N", HEIGHT, WIDTH))
    assert operators(load_and_compare(path)) == ["Conv", "Flatten"]


def test_load_computes_one_image_at_a_time_when_more_than_a_mean_comes_before_its_batch(tmp_path: Path) -> None:
    nodes = [node("ReduceMax", "x", "m", keepdims=1), node("Div", "x m", "d"), node("Unsqueeze", "d first", "i"), CONV]
    model = load_and_compare(save(tmp_path / "m.onnx", flat(*nodes), constants=CONSTANTS, dims=CHW))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_describe_input_gives_the_size_of_images_without_all_axes(tmp_path: Path) -> None:
    for name, (dims, nodes, _) in CASES.items():
        path = save(tmp_path / f"{len(name)}.onnx", flat(*nodes), constants=CONSTANTS, dims=dims)
        assert signature.describe_input(onnx.load(path), path) == ("x", (HEIGHT, WIDTH)), name


def test_unit_of_one_image_of_pixels_is_told_by_what_the_network_subtracts(tmp_path: Path) -> None:
    nodes = [node("Unsqueeze", "x first", "i"), node("Sub", "i pixels", "d"), node("Conv", "d w", "a")]
    constants = {**CONSTANTS, "pixels": np.array([123.0, 117.0, 104.0], np.float32)[:, None, None]}
    path = save(tmp_path / "m.onnx", flat(*nodes), constants=constants, dims=CHW)
    assert input_units.unit_of(onnx.load(path)) is input_units.InputUnit.PIXELS


def test_load_refuses_rows_whose_order_nothing_tells(tmp_path: Path) -> None:
    constants = {"m": np.ones((ROW, 4), np.float32)}
    path = save(tmp_path / "m.onnx", [node("MatMul", "x m", "y")], constants=constants, dims=("N", ROW))
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: input 'x' is float [N, {ROW}]; wanted images, [N, 3, H, W]: nothing behind it tells in which order a "
        "row holds an image; export it with images as its input"
    )


def test_raw_file_feeds_one_image_of_uint8_with_channels_last(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Unsqueeze", "f first", "a")]
    path = save(tmp_path / "m.onnx", flat(*nodes), constants=CONSTANTS, dims=(HEIGHT, WIDTH, 3), kind=TensorProto.UINT8)
    pixels = np.round(np.abs(IMAGES[:2]) * 20)
    expected = pixels.transpose(0, 2, 3, 1).reshape(2, -1)
    np.testing.assert_array_equal(RawFile(path, None).answers(pixels), expected)
    np.testing.assert_array_equal(classifier.run(classifier.load(path, CHW), pixels), expected)
