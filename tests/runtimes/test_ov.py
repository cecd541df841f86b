"""How OpenVINO reads the models of packages: in a form that it compiles on any CPU, for nothing on x86."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from run_fixtures import float32_model, int8_model

from pipeline.quant import pixels, qdq
from pipeline.quant.qmath import Range
from pipeline.runtimes.base import Placement

openvino = pytest.importorskip("openvino")
ov = pytest.importorskip("pipeline.runtimes.ov")
pytestmark = pytest.mark.openvino

ONE = Placement(1, 1)
IMAGES = np.random.default_rng(2).integers(0, 256, (2, 3, 32, 32), np.uint8)


def reading_pixels(*, padded: bool = True) -> onnx.ModelProto:
    """A float32 network whose input is raw pixels."""
    model = float32_model()
    if not padded:
        first = next(node for node in model.graph.node if node.name == "conv1")
        first.attribute.remove(next(each for each in first.attribute if each.name == "pads"))
    pixels.fold_normalisation(model, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return model


def save_int8(path: Path, *, padded: bool = True) -> Path:
    drawn = np.random.default_rng(1).integers(0, 256, (8, 3, 32, 32))
    onnx.save(int8_model(reading_pixels(padded=padded), drawn), path)
    return path


def added_quantizers(network: Any) -> list[Any]:
    """Return the quantizers that read a Convert from uint8: those of the file read float."""
    return [
        node
        for node in network.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
        and node.input_value(0).get_node().get_type_name() == "Convert"
        and node.input_value(0).get_node().input(0).get_element_type() == openvino.Type.u8
    ]


def kernels(compiled: Any) -> Counter[tuple[str, ...]]:
    keys = ("layerType", "primitiveType", "runtimePrecision", "outputPrecisions")
    return Counter(
        tuple(str(node.get_rt_info()[key].astype(str)) for key in keys)
        for node in compiled.get_runtime_model().get_ordered_ops()
    )


@pytest.mark.parametrize("padded", [True, False])
def test_int8_model_of_pixels_is_read_with_a_quantizer_before_its_first_layer(tmp_path: Path, padded: bool) -> None:
    """Without one, ARM CPUs refuse it. What it makes of 0 to 255 are the same numbers, by its own operator here."""
    network = ov._read(openvino.Core(), save_int8(tmp_path / "pixels.onnx", padded=padded))
    (added,) = added_quantizers(network)
    assert added.get_attributes()["levels"] == 256
    limits = [float(added.input_value(port).get_node().data) for port in range(1, 5)]
    assert limits == [0, 255, 0, 255]
    values = openvino.op.Parameter(openvino.Type.f32, openvino.Shape([256]))
    bounds = [ov.operators.constant(np.float32(limit)) for limit in limits]
    alone = openvino.Model([ov.operators.fake_quantize(values, *bounds, 256)], [values])
    compiled = openvino.Core().compile_model(alone, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    grid = np.arange(256, dtype=np.float32)
    np.testing.assert_allclose(compiled([grid])[0], grid, atol=1e-4)


def test_quantizer_costs_nothing_here(tmp_path: Path) -> None:
    """The same kernels run as without it, and answers are equal to the bit."""
    path = save_int8(tmp_path / "pixels.onnx")
    with_it = ov.compile_model(path, len(IMAGES), ONE)
    network = openvino.Core().read_model(str(path))
    network.reshape([len(IMAGES), 3, 32, 32])
    settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    without = openvino.Core().compile_model(network, "CPU", settings)
    expected: npt.NDArray[np.float32] = without([IMAGES])[0]
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(with_it([IMAGES])[0], expected)
    assert kernels(with_it) == kernels(without)


def test_models_that_dequantize_no_input_are_read_as_they_are(tmp_path: Path) -> None:
    onnx.save(int8_model(float32_model()), tmp_path / "float_input.onnx")
    model = reading_pixels()
    ranges = {name: Range(0.0, 255.0) for name in qdq.observed_tensors(model)}
    through_cast = qdq.insert_qdq(model, ranges, per_channel=True, float_layers=["conv1"])
    onnx.save(through_cast, tmp_path / "through_cast.onnx")
    for name in ("float_input", "through_cast"):
        path = tmp_path / f"{name}.onnx"
        plain = [node.get_type_name() for node in openvino.Core().read_model(str(path)).get_ordered_ops()]
        assert [node.get_type_name() for node in ov._read(openvino.Core(), path).get_ordered_ops()] == plain


def test_saved_ir_has_the_quantizer(tmp_path: Path) -> None:
    """An IR that was written here may be opened on an ARM CPU."""
    ov.save_ir(save_int8(tmp_path / "pixels.onnx"), tmp_path / "model.xml")
    assert len(added_quantizers(openvino.Core().read_model(str(tmp_path / "model.xml")))) == 1
