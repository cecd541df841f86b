"""What means "no value" before a MaxPool, in other forms than one Pad, goes into the pool's padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_fixtures import CHW, WEIGHT, flat, load_and_compare, node, operators, save

LOWEST = float(np.finfo(np.float32).min)
BLOCKS = {"one": np.array([-np.inf], np.float32), "side": np.full((1, 4, 6, 1), LOWEST, np.float32)}


def pool(source: str, **settings: list[int]) -> onnx.NodeProto:
    return node("MaxPool", source, "a", kernel_shape=[3, 3], strides=[2, 2], **settings)


@pytest.mark.parametrize("joined", ["c side", "side c", "side c side"])
def test_load_takes_a_concat_of_constants_of_no_value_as_padding(tmp_path: Path, joined: str) -> None:
    nodes = flat(node("Conv", "x w", "c"), node("Concat", joined, "p", axis=3), pool("p"))
    path = save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT, **BLOCKS}, dims=(1, *CHW))
    assert operators(load_and_compare(path)) == ["Conv", "MaxPool", "Flatten"]


@pytest.mark.parametrize("filled", ["Expand", "ConstantOfShape"])
def test_load_takes_a_concat_of_blocks_for_each_image_as_padding(tmp_path: Path, filled: str) -> None:
    value = numpy_helper.from_array(np.array([-np.inf], np.float32))
    made = node("Expand", "one d", "b") if filled == "Expand" else node("ConstantOfShape", "d", "b", value=value)
    nodes = flat(
        *(node("Conv", "x w", "c"), node("Shape", "c", "s"), node("Slice", "s zero first", "n")),
        *(node("Concat", "n rest", "d", axis=0), made, node("Concat", "c b", "p", axis=-1), node("Relu", "p", "r")),
        pool("r"),
    )
    constants = {"w": WEIGHT, **BLOCKS, "zero": np.array([0]), "first": np.array([1]), "rest": np.array([4, 6, 1])}
    found = operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))
    assert found == ["Conv", "Relu", "MaxPool", "Flatten"]


@pytest.mark.parametrize("block", [np.zeros((1, 4, 6, 1)), np.linspace(-9e9, -1e9, 24).reshape(1, 4, 6, 1)])
def test_load_keeps_a_concat_of_values(tmp_path: Path, block: np.ndarray) -> None:
    nodes = flat(node("Conv", "x w", "c"), node("Concat", "c side", "p", axis=3), pool("p"))
    constants = {"w": WEIGHT, "side": block.astype(np.float32)}
    assert "Concat" in operators(
        load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants, dims=(1, *CHW)))
    )


@pytest.mark.parametrize("pads", [[-1, 1, 1, -1], [1, -1, -2, 1], [-1, -1, 1, 1]])
def test_load_folds_a_pad_that_crops_too(tmp_path: Path, pads: list[int]) -> None:
    nodes = flat(node("Conv", "x w", "c"), node("Pad", "c pads fill", "p"), pool("p"))
    constants = {"w": WEIGHT, "pads": np.array([0, 0, *pads[:2], 0, 0, *pads[2:]]), "fill": np.float32(-1e5)}
    found = operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))
    assert found == ["Conv", "Slice", "MaxPool", "Flatten"]


def test_load_keeps_a_pad_of_no_value_that_only_crops(tmp_path: Path) -> None:
    nodes = flat(node("Conv", "x w", "c"), node("Pad", "c pads fill", "p"), pool("p"))
    constants = {"w": WEIGHT, "pads": np.array([0, 0, -1, 0, 0, 0, 0, -1]), "fill": np.float32(-1e5)}
    load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))


def test_load_sees_a_crop_and_a_concat_at_once(tmp_path: Path) -> None:
    nodes = flat(
        *(node("Conv", "x w", "c"), node("Pad", "c pads fill", "d"), node("Concat", "d side", "p", axis=3)),
        pool("p", pads=[1, 0, 1, 0]),
    )
    constants = {"w": WEIGHT, "pads": np.array([0, 0, 0, -2, 0, 0, 0, 0]), "fill": np.float32(0), **BLOCKS}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants, dims=(1, *CHW)))
    last = next(each for each in model.graph.node if each.op_type == "MaxPool")
    assert helper.get_attribute_value(next(a for a in last.attribute if a.name == "pads")) == [1, 0, 1, 1]
