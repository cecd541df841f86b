"""A batch that an export fixed is freed, wherever it left its mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, flat, load_and_compare, node, save

from pipeline.onnx_models import classifier

FC = RNG.normal(size=(4, 5)).astype(np.float32)


def pooled(shape: list[int], **attributes: Any) -> list[onnx.NodeProto]:
    return [
        *(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "g")),
        *(node("Reshape", "g to", "f", **attributes), node("Gemm", "f fw", "y")),
    ]


@pytest.mark.parametrize("allowzero", [0, 1])
@pytest.mark.parametrize("batch", [1, 2, 8, "N"])
def test_load_frees_reshapes_of_any_batch(tmp_path: Path, batch: int | str, allowzero: int) -> None:
    first = batch if isinstance(batch, int) else -1
    for shape in ([first, 4], [first, -1] if first > 0 else [-1, 4]):
        constants = {"w": WEIGHT, "fw": FC, "to": np.array(shape)}
        path = save(tmp_path / "m.onnx", pooled(shape, allowzero=allowzero), 18, constants, dims=(batch, *CHW))
        load_and_compare(path)


def test_load_keeps_a_zero_that_means_zero(tmp_path: Path) -> None:
    """A tensor of no elements joined to another changes nothing; 0 with allowzero is its size."""
    nodes = [
        *(
            node("Flatten", "x", "f"),
            node("Slice", "f from to axis", "none"),
            node("Reshape", "none shape", "z", allowzero=1),
        ),
        node("Concat", "f z", "y", axis=1),
    ]
    constants = {
        "from": np.array([0]),
        "to": np.array([0]),
        "axis": np.array([1]),
        "shape": np.array([1, 0]),
    }
    path = save(tmp_path / "m.onnx", nodes, 18, constants, dims=(1, *CHW))
    load_and_compare(path)


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_load_frees_a_shuffle_of_channels(tmp_path: Path, batch: int) -> None:
    """ShuffleNet: [N, groups, channels / groups, H, W], transposed and put together again."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "w": WEIGHT,
        "apart": np.array([batch, 2, 2, 6, 6]),
        "together": np.array([batch, -1, 6, 6]),
    }
    nodes = flat(
        *(node("Conv", "x w", "c"), node("Reshape", "c apart", "p"), node("Transpose", "p", "t", perm=[0, 2, 1, 3, 4])),
        node("Reshape", "t together", "a"),
    )
    load_and_compare(save(tmp_path / "m.onnx", nodes, 18, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 3])
def test_load_frees_windows_that_are_folded_into_the_batch(tmp_path: Path, batch: int) -> None:
    """Swin: windows of 4x4 of an 8x8 image become images, and images again."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "cut": np.array([batch, 3, 2, 4, 2, 4]),
        "windows": np.array([batch * 4, 3, 16]),
        "w": RNG.normal(size=(16, 16)).astype(np.float32),
        "back": np.array([batch, 2, 2, 3, 16]),
        "flat": np.array([batch, -1]),
    }
    nodes = [
        *(node("Reshape", "x cut", "p"), node("Transpose", "p", "t", perm=[0, 2, 4, 1, 3, 5])),
        *(node("Reshape", "t windows", "i"), node("MatMul", "i w", "m"), node("Softmax", "m", "s", axis=-1)),
        *(node("Reshape", "s back", "b"), node("Reshape", "b flat", "y")),
    ]
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


def attention(batch: int) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[np.generic]]]:
    """torch's MultiheadAttention at a fixed batch: [positions, batch, features], heads folded into the batch."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "tokens": np.array([batch, 12, 16]),
        "q": RNG.normal(size=(12, 12)).astype(np.float32) / 4,
        "heads": np.array([17, batch * 3, 4]),
        "joined": np.array([17, batch, 12]),
        "token": np.repeat(RNG.normal(size=(1, 1, 12)).astype(np.float32), batch, axis=0),
        "place": RNG.normal(size=(1, 17, 12)).astype(np.float32),
        "half": np.float32(0.5),
        "fc": RNG.normal(size=(12, 5)).astype(np.float32),
        "first": np.array(0),
        "wide": RNG.normal(size=(12, 3, 2, 2)).astype(np.float32),
    }
    nodes = [
        *(node("Conv", "x wide", "c", strides=[2, 2]), node("Reshape", "c tokens", "k")),
        *(node("Transpose", "k", "n", perm=[0, 2, 1]), node("Concat", "token n", "j", axis=1)),
        *(node("Add", "j place", "e"), node("Transpose", "e", "l", perm=[1, 0, 2]), node("MatMul", "l q", "v")),
        *(node("Reshape", "v heads", "h"), node("Transpose", "h", "b", perm=[1, 0, 2])),
        *(node("Transpose", "b", "bt", perm=[0, 2, 1]), node("MatMul", "b bt", "qk"), node("Mul", "qk half", "scaled")),
        *(
            node("Softmax", "scaled", "s", axis=-1),
            node("MatMul", "s b", "o"),
            node("Transpose", "o", "ot", perm=[1, 0, 2]),
        ),
        *(node("Reshape", "ot joined", "z"), node("Transpose", "z", "zt", perm=[1, 0, 2])),
        *(node("Gather", "zt first", "cls", axis=1), node("Gemm", "cls fc", "y")),
    ]
    return nodes, constants


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_load_frees_a_transformer(tmp_path: Path, batch: int) -> None:
    nodes, constants = attention(batch)
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 2])
def test_load_frees_an_expansion_to_the_batch(tmp_path: Path, batch: int) -> None:
    nodes = flat(node("GlobalAveragePool", "x", "g"), node("Expand", "g to", "e"), node("Sub", "x e", "a"))
    constants = {"to": np.array([batch, 3, 8, 8])}
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_load_frees_a_resize_to_a_size(tmp_path: Path, mode: str, batch: int) -> None:
    nodes = flat(onnx.helper.make_node("Resize", ["x", "", "", "to"], ["a"], "resize", mode=mode))
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, {"to": np.array([batch, 3, 11, 5])}, dims=(batch, *CHW)))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_load_keeps_the_batch_axis_when_a_squeeze_names_no_axes(tmp_path: Path, opset: int) -> None:
    nodes = [node("Conv", "x w", "c"), node("GlobalMaxPool", "c", "p"), node("Squeeze", "p", "y")]
    model = classifier.load(save(tmp_path / "m.onnx", nodes, opset, {"w": WEIGHT}), CHW)
    expected = classifier.run(model, IMAGES)
    assert expected.shape == (len(IMAGES), len(WEIGHT))
    assert classifier.run(model, IMAGES[:1]).shape == (1, len(WEIGHT))
    np.testing.assert_allclose(classifier.run(model, IMAGES[:1]), expected[:1], rtol=1e-5, atol=1e-6)
