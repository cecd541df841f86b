"""OpenVINO's settings for the CPU at hand; what they do on ARM is checked by emulation (benchmarks/emulated.py)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from run_fixtures import Float32, float32_model, int8_model
from torch import Tensor, nn

from pipeline.errors import BackendError
from pipeline.host.hardware import available_cores, is_arm
from pipeline.onnx_models import classifier
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


class Attention(nn.Module):
    """A vision transformer of one block, as timm and torchvision write it."""

    def __init__(self, width: int = 48, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.place = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Linear(width, 10)
        self.heads = heads

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        count, positions, width = x.shape
        split = self.qkv(self.norms[0](x)).reshape(count, positions, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * (width // self.heads) ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
        x = x + self.mixed((weights @ value).transpose(1, 2).reshape(count, positions, width))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norms[1](x))))
        scores: Tensor = self.head(self.norms[2](x)[:, 0])
        return scores


@pytest.fixture
def attention(tmp_path: Path) -> Path:
    """An int8 attention network with a free batch."""
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Attention().eval(),
            (torch.zeros(1, 3, 32, 32),),
            str(tmp_path / "float.onnx"),
            dynamo=False,
            input_names=["image"],
            output_names=["scores"],
            opset_version=classifier.OPSET,
            dynamic_axes={"image": {0: "N"}, "scores": {0: "N"}},
        )
    model = classifier.load(tmp_path / "float.onnx", (3, 32, 32))
    onnx.save(int8_model(model, noise(16)), tmp_path / "attention.onnx")
    return tmp_path / "attention.onnx"


def noise(count: int) -> Float32:
    return np.random.default_rng(5).normal(size=(count, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 3])
def test_ir_of_an_attention_network_gives_its_answers_when_the_batch_is_free(attention: Path, batch: int) -> None:
    """The IR of the model as it is read gives 4 dB."""
    ov.save_ir(attention, attention.with_suffix(".xml"))
    found = compiled_as_it_is(attention.with_suffix(".xml"))([noise(batch)])[0]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(attention), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": noise(batch)})[0]
    assert found.shape == (batch, 10)
    assert decibels(expected, found) > 35


def test_save_ir_refuses_an_ir_that_answers_otherwise(attention: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ov.openvino.Core().read_model
    monkeypatch.setattr(ov.openvino, "convert_model", lambda path: read(path))  # without its transformations
    given = decibels(
        compiled_as_it_is(attention)([noise(2)])[0], ov.compile_model(attention, 2, Placement(1, 1))([noise(2)])[0]
    )
    if given > 25:
        pytest.skip(f"OpenVINO {ov.openvino.__version__} compiles the model as it is read rightly: {given:.1f} dB")
    with pytest.raises(BackendError, match=r"answers otherwise .* the batch fixed when it is compiled"):
        ov.save_ir(attention, attention.with_suffix(".xml"))


def compiled_as_it_is(model: Path) -> Any:
    return ov.openvino.Core().compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def decibels(expected: Float32, found: Float32) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))
