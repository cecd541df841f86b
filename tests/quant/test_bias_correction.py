"""bias_correction.py: the mean outputs of int8 layers, run with and without it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from pipeline.models import exporter
from pipeline.onnx_models import classifier
from pipeline.quant import neighbours, placement, qdq
from pipeline.quant.bias_correction import Dequantized, correct_biases
from pipeline.quant.qmath import Range, max_range

Float32 = npt.NDArray[np.float32]


class Net(nn.Module):
    """Strided, grouped, 1x1 convolutions and a classifier, on inputs whose channels have means far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=0)
        self.grouped = nn.Conv2d(8, 8, 3, padding=0, groups=4)
        self.last = nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.last(torch.relu(self.grouped(torch.relu(self.first(x))))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def images() -> Float32:
    rng = np.random.default_rng(2)
    return np.asarray(rng.normal(0, 1, (16, 3, 17, 17)) + np.array([3, -2, 1])[:, None, None], np.float32)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    torch.manual_seed(3)
    return exporter.to_onnx(Net(), (3, 17, 17))


def values_of(model: onnx.ModelProto, names: list[str], images: Float32) -> dict[str, Float32]:
    found = {}
    for name in names:
        probed = onnx.ModelProto()
        probed.CopyFrom(model)
        del probed.graph.output[:]
        probed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        found[name] = classifier.run(probed, images)
    return found


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto, images: Float32) -> dict[str, Range]:
    names = [name for name in placement.observed_tensors(model) if name != "input"]
    seen = {"input": images, **values_of(model, names, images)}
    return {name: max_range(float(values.min()), float(values.max())) for name, values in seen.items()}


@pytest.fixture(scope="module")
def means(model: onnx.ModelProto, images: Float32) -> dict[str, npt.NDArray[np.float64]]:
    names = [name for name in placement.layer_inputs(model) if name != "input"]
    seen = {"input": images, **values_of(model, names, images)}
    return {name: values.mean(axis=(0, *range(2, values.ndim)), dtype=np.float64) for name, values in seen.items()}


def coarse(model: onnx.ModelProto, ranges: dict[str, Range]) -> onnx.ModelProto:
    """Return the QDQ model with weights of four bits, whose rounding shows above all other noise."""
    int8 = qdq.insert_qdq(model, ranges, per_channel=True)
    for tensor in int8.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name.endswith("_quantized") and tensor.dims:
            values = numpy_helper.to_array(tensor).astype(np.int16)
            rounded = np.clip(np.round(values / 16) * 16, -127, 127).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return int8


def test_correct_biases_gives_the_first_layer_its_mean_output_back(
    model: onnx.ModelProto, ranges: dict[str, Range], images: Float32, means: dict[str, npt.NDArray[np.float64]]
) -> None:
    """To a part of a quantizer's step: the layer's own input has means that do not depend on other corrections."""
    int8 = coarse(model, ranges)
    corrected = onnx.ModelProto()
    corrected.CopyFrom(int8)
    changes = correct_biases(corrected, model, means)
    assert len(changes) == 4
    output = model.graph.node[0].output[0]
    relu = next(node.output[0] for node in model.graph.node if output in node.input)

    def off(each: onnx.ModelProto) -> float:
        made = {name for node in each.graph.node for name in node.output}
        found = values_of(each, [output if output in made else relu], images)
        wanted = values_of(model, [output], images)[output]
        return float(np.abs(next(iter(found.values())).mean((0, 2, 3)) - wanted.mean((0, 2, 3))).max())

    assert off(int8) > 0.05
    assert off(corrected) < 0.1 * off(int8)
    assert changes[model.graph.node[0].name] == pytest.approx(off(int8), rel=0.1)


def test_correct_biases_brings_the_answers_closer_to_float32(
    model: onnx.ModelProto, ranges: dict[str, Range], images: Float32, means: dict[str, npt.NDArray[np.float64]]
) -> None:
    expected = classifier.run(model, images)
    int8 = coarse(model, ranges)
    before = classifier.relative_error(expected, classifier.run(int8, images))
    correct_biases(int8, model, means)
    assert classifier.relative_error(expected, classifier.run(int8, images)) < 0.5 * before


def test_correct_biases_leaves_out_layers_in_float_and_layers_of_unknown_mean(
    model: onnx.ModelProto, ranges: dict[str, Range], means: dict[str, npt.NDArray[np.float64]]
) -> None:
    first, grouped = model.graph.node[0], next(node for node in model.graph.node if "grouped" in node.name)
    int8 = qdq.insert_qdq(model, ranges, per_channel=True, float_layers=[first.name])
    known = {name: mean for name, mean in means.items() if name != grouped.input[0]}
    before = int8.SerializeToString()
    assert first.name not in correct_biases(int8, model, known)
    assert grouped.name not in correct_biases(int8, model, known)
    assert int8.SerializeToString() != before


def test_correct_biases_finds_the_same_when_it_takes_a_few_outputs_at_a_time(
    model: onnx.ModelProto,
    ranges: dict[str, Range],
    means: dict[str, npt.NDArray[np.float64]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    int8 = coarse(model, ranges)
    expected = correct_biases(coarse(model, ranges), model, means)
    monkeypatch.setattr(neighbours, "_CHUNK", 30)
    assert correct_biases(int8, model, means) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_dequantized_returns_a_part_of_the_whole(along: int, axis: int | None) -> None:
    values = np.arange(20, dtype=np.int8).reshape(4, 5)
    scale = np.float32(0.5) if axis is None else np.arange(1, 5 + axis, dtype=np.float32)
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=1 if axis is None else axis)
    tensors = [numpy_helper.from_array(values, "w"), numpy_helper.from_array(np.array(scale), "s")]
    graph = Dequantized(helper.make_model(helper.make_graph([node], "graph", [], [], tensors)))
    whole = values * (scale if axis is None else scale.reshape((4, 1) if axis == 0 else (1, 5)))
    found = graph.dequantized("y", slice(1, 3), along)
    assert found is not None
    np.testing.assert_array_equal(found, whole[1:3] if along == 0 else whole[:, 1:3])
