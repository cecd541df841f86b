"""unordered.py: the values of each tensor are those of the model, in whatever order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from pipeline.runtimes.activations import ActivationReader, Arithmetic
from pipeline.runtimes.base import Placement
from pipeline.runtimes.readers import open_unordered
from pipeline.runtimes.unordered import UnorderedReader

Float32 = npt.NDArray[np.float32]
NAMES = ["input", "first", "second", "narrow", "output"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A network of three convolutions: of 32 channels, of 16, and of 10, which fill no block."""
    random = np.random.default_rng(0)
    sizes = {"first": (3, 32), "second": (32, 16), "narrow": (16, 10)}
    kernels = [
        numpy_helper.from_array(random.normal(0, 0.3, (outputs, inputs, 3, 3)).astype(np.float32), f"{name}_kernel")
        for name, (inputs, outputs) in sizes.items()
    ]
    nodes, last = [], "input"
    for name in sizes:
        nodes += [
            oh.make_node("Conv", [last, f"{name}_kernel"], [f"{name}_sum"], pads=[1] * 4),
            oh.make_node("Relu", [f"{name}_sum"], [name]),
        ]
        last = name
    nodes += [oh.make_node("GlobalAveragePool", [last], ["pooled"]), oh.make_node("Flatten", ["pooled"], ["output"])]
    graph = oh.make_graph(
        nodes,
        "network",
        [oh.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [oh.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch", 10])],
        kernels,
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def images(count: int) -> Float32:
    return np.random.default_rng(1).normal(0, 1, (count, 3, 12, 12)).astype(np.float32)


def in_blocks(values: Float32, block: int) -> Float32:
    """Return [1, C, H, W] as [1, C / block, H, W, block]."""
    _, channels, height, width = values.shape
    return np.moveaxis(values.reshape(1, channels // block, block, height, width), 2, -1)


def test_tensors_have_their_values_in_blocks_of_channels_or_in_order(path: Path, tmp_path: Path) -> None:
    """From threads at once; the output, tensors asked for in order and those of 10 channels are as the model's."""
    exact = ActivationReader(path, NAMES, threads=1)
    scratch = tmp_path / "scratch.onnx"
    reader = open_unordered(path, NAMES, Placement(2, 2), images(1)[0], ordered={"second", "output"}, scratch=scratch)
    assert reader.arithmetic is Arithmetic.FLOAT32
    assert not scratch.exists()

    def read(image: Float32) -> dict[str, Float32]:
        return {name: np.asarray(values, np.float32).copy() for name, values in reader.read(image).items()}

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(read, images(6)))
    reader.close()
    for image, tensors in zip(images(6), found, strict=True):
        expected = exact.read(image)
        for name in ("input", "second", "narrow", "output"):
            np.testing.assert_array_equal(tensors[name], expected[name])
        orders = [expected["first"], *(in_blocks(expected["first"], block) for block in (8, 16))]
        assert any(np.array_equal(tensors["first"].reshape(-1), order.reshape(-1)) for order in orders)


def test_tensors_are_in_order_when_those_of_the_image_cannot_be_compared(path: Path, tmp_path: Path) -> None:
    image = images(1)[0]
    reader = open_unordered(
        path, NAMES, Placement(1, 1), np.full_like(image, np.nan), ordered={"output"}, scratch=tmp_path / "scratch.onnx"
    )
    expected = ActivationReader(path, NAMES, threads=1).read(image)
    found = reader.read(image)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name])


def test_tensors_are_in_order_when_the_scratch_file_cannot_be_written(path: Path, tmp_path: Path) -> None:
    image = images(1)[0]
    scratch = tmp_path / "absent" / "scratch.onnx"
    reader = open_unordered(path, NAMES, Placement(1, 1), image, ordered=(), scratch=scratch)
    expected = ActivationReader(path, NAMES, threads=1).read(image)
    np.testing.assert_array_equal(reader.read(image)["first"], expected["first"])


def test_levels_of_an_int8_model_are_those_of_the_model_in_some_order(tmp_path: Path) -> None:
    """Two convolutions between quantizers, of pixels; ONNX Runtime computes the second with channels last."""
    random = np.random.default_rng(2)
    constants = {
        "one": np.float32(1),
        "step": np.float32(0.5),
        "zero": np.uint8(0),
        "tick": np.float32(0.01),
        "none": np.int8(0),
        "first_kernel": random.integers(-64, 64, (32, 3, 3, 3)).astype(np.int8),
        "second_kernel": random.integers(-64, 64, (16, 32, 3, 3)).astype(np.int8),
    }
    nodes, last = [oh.make_node("DequantizeLinear", ["input", "one", "zero"], ["pixels"])], "pixels"
    for name in ("first", "second"):
        nodes += [
            oh.make_node("DequantizeLinear", [f"{name}_kernel", "tick", "none"], [f"{name}_weights"]),
            oh.make_node("Conv", [last, f"{name}_weights"], [f"{name}_sum"], pads=[1] * 4),
            oh.make_node("QuantizeLinear", [f"{name}_sum", "step", "zero"], [f"{name}_levels"]),
            oh.make_node("DequantizeLinear", [f"{name}_levels", "step", "zero"], [name]),
        ]
        last = name
    nodes += [oh.make_node("GlobalAveragePool", [last], ["pooled"]), oh.make_node("Flatten", ["pooled"], ["output"])]
    graph = oh.make_graph(
        nodes,
        "network",
        [oh.make_tensor_value_info("input", onnx.TensorProto.UINT8, ["batch", 3, 12, 12])],
        [oh.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    names, image = ["first_levels", "second_levels", "output"], random.integers(0, 256, (3, 12, 12)).astype(np.uint8)
    scratch = tmp_path / "scratch.onnx"
    reader = UnorderedReader(model, names, image, ordered={"output"}, threads=1, scratch=scratch)
    plain = ActivationReader(model, names, threads=1)
    for other in (image, 255 - image):
        found, expected = reader.read(other), plain.read(other)
        for name in names[:2]:
            assert found[name].dtype == np.uint8
            assert len(np.unique(expected[name])) > 10
            np.testing.assert_array_equal(np.sort(found[name], axis=None), np.sort(expected[name], axis=None))
        np.testing.assert_allclose(found["output"], expected["output"], rtol=1e-5)
    assert not scratch.exists()
