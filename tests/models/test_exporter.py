from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from pipeline.config.vdsp import load_vdsp
from pipeline.data import preprocess
from pipeline.errors import PipelineError
from pipeline.models import exporter, zoo
from pipeline.onnx_models import classifier
from pipeline.weights import checkpoints, matching

Float32 = npt.NDArray[np.float32]


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_to_onnx_has_a_free_batch_axis_and_the_wanted_names(tiny_network: nn.Module) -> None:
    model = exporter.to_onnx(tiny_network, (3, 32, 40), input_name="images")
    onnx.checker.check_model(model, full_check=True)
    assert [(value.name, dims(value)) for value in model.graph.input] == [("images", ["N", 3, 32, 40])]
    assert [(value.name, dims(value)) for value in model.graph.output] == [("output", ["N", 4])]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


def test_to_onnx_folds_batch_norms_and_names_nodes_by_module(tiny_model: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in tiny_model.graph.node]
    assert "BatchNormalization" not in kinds
    assert "GlobalAveragePool" in kinds
    names = [node.name for node in tiny_model.graph.node]
    assert len(set(names)) == len(names)
    assert {"/conv1/Conv", "/layer2/layer2.0/downsample/downsample.0/Conv", "/fc/Gemm"} <= set(names)


@pytest.mark.parametrize("images", [1, 3, 24])
def test_to_onnx_computes_what_torch_computes(
    tiny_network: nn.Module, tiny_model: onnx.ModelProto, batch_nchw: Float32, images: int
) -> None:
    batch = batch_nchw[:images]
    with torch.inference_mode():
        expected = tiny_network(torch.from_numpy(batch)).numpy()
    found = classifier.run(tiny_model, batch)
    assert found.shape == (images, 4)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert exporter.check_against_torch(tiny_model, tiny_network, batch) < 1e-4


def test_to_onnx_exports_for_inference_when_the_network_is_training(
    tiny_network: nn.Module, tiny_model: onnx.ModelProto, batch_nchw: Float32
) -> None:
    model = exporter.to_onnx(copy.deepcopy(tiny_network).train(), (3, 32, 32))
    np.testing.assert_array_equal(classifier.run(model, batch_nchw), classifier.run(tiny_model, batch_nchw))


@pytest.mark.parametrize(("change", "shown"), [(1.0, r"differs from torch by \d"), (float("nan"), "by nan of")])
def test_check_against_torch_raises_when_the_model_computes_something_else(
    tiny_network: nn.Module, tiny_model: onnx.ModelProto, batch_nchw: Float32, change: float, shown: str
) -> None:
    other = copy.deepcopy(tiny_network)
    assert isinstance(other.fc, nn.Linear)
    other.fc.bias.data[0] += change
    with pytest.raises(PipelineError, match=shown) as caught:
        exporter.check_against_torch(tiny_model, other, batch_nchw)
    assert str(caught.value).endswith(
        "of the largest logit (at most 1e-03 is rounding); check the checkpoint for NaN, or report this with the "
        "versions of torch and onnxruntime"
    )


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_to_onnx_computes_what_torch_computes_when_weights_and_images_are_real(
    weights_folder: Path, real_images: Path, name: str
) -> None:
    network = zoo.build_network(zoo.find_model("torchvision", name))
    path = weights_folder / f"{name}_pq.pth"
    matching.load_strictly(network, checkpoints.read_state_dict(path), path, name)
    model = exporter.to_onnx(network, (3, 224, 224))
    spec = load_vdsp(f"torchvision-{name}-vdsp_params.json")
    images = sorted((real_images / "nips2017_dev" / "val").glob("*.JPEG"))[:4]
    batch = np.stack([preprocess.apply(spec, preprocess.decode(image)) for image in images])
    assert exporter.check_against_torch(model, network, batch) < 1e-4
    labels = dict(line.split() for line in (real_images / "nips2017_dev" / "val_list.txt").read_text().splitlines())
    answers = classifier.run(model, batch).argmax(axis=1)
    wanted = [int(labels.get(image.name, labels.get(f"val/{image.name}", "-1"))) for image in images]
    assert sum(answer == label for answer, label in zip(answers.tolist(), wanted, strict=True)) >= 2
