"""OpenVINO's settings for the CPU at hand; what they do on ARM is checked by emulation (benchmarks/emulated.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from run_fixtures import Float32, float32_model, int8_model

from pipeline.host.hardware import available_cores, is_arm
from pipeline.quant import pixels
from pipeline.runtimes.base import Placement

ov = pytest.importorskip("pipeline.runtimes.ov")
pytestmark = pytest.mark.openvino

IMAGES = np.random.default_rng(2).integers(0, 256, (2, 3, 32, 32), np.uint8)


@pytest.fixture
def reading_pixels(tmp_path: Path) -> Path:
    """An int8 model whose first layer dequantizes uint8 pixels itself."""
    model = float32_model()
    pixels.fold_normalisation(model, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    onnx.save(int8_model(model, np.random.default_rng(1).integers(0, 256, (8, 3, 32, 32))), tmp_path / "pixels.onnx")
    return tmp_path / "pixels.onnx"


def answers_in_exact_arithmetic(model: Path) -> Float32:
    """Return the outputs of the file's nodes computed one by one: without optimizations, float between quantizers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": IMAGES})[0])


def kernels(compiled: Any) -> set[str]:
    """Return the types that the convolutions compute in, as their kernels' names end."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    layers = [each for each in facts if each["layerType"].astype(str) == "Convolution"]
    return {str(each["primitiveType"].astype(str)).rpartition("_")[2] for each in layers}


def test_model_is_computed_in_float32_and_right_when_the_cpu_is_arm(
    monkeypatch: pytest.MonkeyPatch, reading_pixels: Path
) -> None:
    monkeypatch.setattr(ov, "is_arm", lambda: True)
    compiled = ov.compile_model(reading_pixels, len(IMAGES), Placement(1, 1))
    assert kernels(compiled) == {"f32"}
    expected = answers_in_exact_arithmetic(reading_pixels)
    np.testing.assert_allclose(compiled([IMAGES])[0], expected, atol=1e-3 * float(np.abs(expected).max()))


@pytest.mark.skipif(is_arm(), reason="it is about the kernels of x86")
def test_model_is_computed_in_int8_when_the_cpu_is_x86(monkeypatch: pytest.MonkeyPatch, reading_pixels: Path) -> None:
    monkeypatch.setattr(ov, "is_arm", lambda: False)
    compiled = ov.compile_model(reading_pixels, len(IMAGES), Placement(1, 1))
    assert kernels(compiled) == {"I8"}


@pytest.mark.skipif(available_cores() < 2, reason="a part of the cores is all of them")
def test_threads_are_free_when_the_process_has_a_part_of_the_cores(reading_pixels: Path) -> None:
    """Pinned ones would take the first cores, in each of several processes."""
    compiled = ov.compile_model(reading_pixels, 1, Placement(1, available_cores() - 1))
    assert not compiled.get_property("ENABLE_CPU_PINNING")
