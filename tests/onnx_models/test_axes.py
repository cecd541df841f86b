"""onnx_axes.py: Pad and Resize that name their axes, to the values of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_fixtures import IMAGES, RNG, WEIGHT, flat, load_and_compare, node, save
from small_graphs import run_exact, run_in, sqnr_db

from pipeline.onnx_models.graphs import integer, integers
from pipeline.runtimes.base import Runtime


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3]])
@pytest.mark.parametrize("value", [None, 1.5])
def test_load_writes_a_pad_for_all_axes(tmp_path: Path, axes: list[int], value: float | None) -> None:
    pads = np.arange(1, 2 * len(axes) + 1)
    constants: dict[str, Any] = {"w": WEIGHT, "pads": pads, "axes": np.array(axes)}
    if value is not None:
        constants["value"] = np.float32(value)
    pad = helper.make_node("Pad", ["c", "pads", "value" if value is not None else "", "axes"], ["a"], "pad")
    model = load_and_compare(save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), pad), 18, constants))
    made = next(each for each in model.graph.node if each.op_type == "Pad")
    assert len(made.input) == (2 if value is None else 3)


@pytest.mark.parametrize("batch", [1, 3, "N"])
@pytest.mark.parametrize("what", ["sizes", "scales"])
def test_load_writes_a_resize_for_all_axes(tmp_path: Path, what: str, batch: int | str) -> None:
    inputs = ["c", "", "", "sizes"] if what == "sizes" else ["c", "", "scales"]
    values = np.array([11, 4]) if what == "sizes" else np.array([1.7, 0.6], np.float32)
    resize = helper.make_node("Resize", inputs, ["a"], "resize", mode="linear", axes=[3, 2])
    nodes = flat(node("Conv", "x w", "c"), resize)
    path = save(tmp_path / "m.onnx", nodes, 18, {"w": WEIGHT, what: values}, dims=(batch, 3, 8, 8))
    made = next(each for each in load_and_compare(path).graph.node if each.op_type == "Resize")
    assert integers(made, "axes") is None


@pytest.mark.parametrize("order", [[2, 3, 1, 0], [1, 2, 3, 0], [3, 1, 2], [-1, 0, -3, 1]], ids=str)
def test_load_keeps_channels_that_a_gather_reorders_for_a_convolution(tmp_path: Path, order: list[int]) -> None:
    nodes = flat(
        *(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Gather", "r order", "g", axis=1)),
        node("Conv", "g v", "a"),
    )
    constants = {"w": WEIGHT, "order": np.array(order), "v": RNG.normal(size=(8, len(order), 3, 3)).astype(np.float32)}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants), atol=1e-4)
    assert [integer(each, "axis", 0) for each in model.graph.node if each.op_type == "Gather"] == [-3]
    onnx.save(model, tmp_path / "loaded.onnx")
    for runtime in Runtime:
        assert sqnr_db(run_exact(model, IMAGES), run_in(runtime, tmp_path / "loaded.onnx", IMAGES)) > 100


def test_load_keeps_slopes_of_the_last_axis_that_has_as_many_values_as_axis_1(tmp_path: Path) -> None:
    """OpenVINO 2026.4.1 took them along axis 1: 1 dB."""
    nodes = flat(node("Conv", "x w", "c"), node("PRelu", "c slopes", "a"))  # the map is 6 x 6
    constants = {"w": RNG.normal(size=(6, 3, 3, 3)).astype(np.float32), "slopes": RNG.normal(size=6).astype(np.float32)}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants))
    onnx.save(model, tmp_path / "loaded.onnx")
    for runtime in Runtime:
        assert sqnr_db(run_exact(model, IMAGES), run_in(runtime, tmp_path / "loaded.onnx", IMAGES)) > 100
