"""equalize.py: the model it writes, and what it needs for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from conftest import FinishedBuild
from torch import nn

from pipeline.config.build_config import BuildConfig
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.models import exporter
from pipeline.onnx_models import classifier
from pipeline.quant import placement
from pipeline.quant.equalization import scaled_tensors
from pipeline.quant.neighbours import largest_sums, weight_pairs
from pipeline.runtimes.activations import ActivationReader
from pipeline.stages import calibrate, calibset, equalize, export, quantize, thresholds

MakeConfig = Callable[..., BuildConfig]
Float32 = npt.NDArray[np.float32]


@pytest.fixture
def inputs(make_config: MakeConfig, tmp_path: Path) -> dict[str, Path]:
    """What the stages before left; all 24 images."""
    folders = {name: tmp_path / "inputs" / name for name in ("calibset", "export")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    calibset.run(calibset.take_settings(make_config("dataset.sampler.get_data_num=24")), {}, folders["calibset"])
    export.run(export.take_settings(make_config()), folders, folders["export"])
    return folders


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the models before and after."""
    out.mkdir()
    equalize.run(equalize.take_settings(cfg), inputs, out)
    assert {path.name for path in out.iterdir()} - {"arithmetic.json"} == {"figures.json", "model.onnx"}
    return onnx.load(inputs["export"] / "model.onnx"), onnx.load(out / "model.onnx")


def ranges(model: onnx.ModelProto, batch_nchw: Float32) -> dict[str, Float32]:
    names = list(scaled_tensors(model, placement.observed_tensors(model)))
    reader = ActivationReader(model, names, threads=1)
    seen = [{name: value.copy() for name, value in reader.read(image).items()} for image in batch_nchw]
    return {
        name: np.max([np.abs(values[name]).max(axis=(0, *range(2, values[name].ndim))) for values in seen], axis=0)
        for name in names
    }


def test_run_writes_the_same_function_with_channels_of_like_ranges(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, batch_nchw: Float32
) -> None:
    before, after = run(make_config(), inputs, tmp_path / "out")
    expected = classifier.run(before, batch_nchw)
    assert classifier.relative_error(expected, classifier.run(after, batch_nchw)) < 1e-5
    assert [node.name for node in after.graph.node] == [node.name for node in before.graph.node]
    assert placement.observed_tensors(after) == placement.observed_tensors(before)
    old, new = ranges(before, batch_nchw), ranges(after, batch_nchw)
    assert len(old) > 5
    evenness = [np.mean([(each / each.max()).mean() for each in found.values()]) for found in (old, new)]
    assert evenness[1] > evenness[0] + 0.03
    # Where a stream is one observed tensor, by the rule: the square root of the ratio of ranges.
    alone = "/layer1/layer1.0/relu/Relu_output_0"
    ratios = old[alone] / old[alone].max()
    np.testing.assert_allclose(new[alone] / new[alone].max(), np.sqrt(np.maximum(ratios, 1e-4)), rtol=1e-3)


def test_run_reads_some_of_the_images_that_rounding_reads(
    make_config: MakeConfig,
    inputs: dict[str, Path],
    tmp_path: Path,
    batch_nchw: Float32,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 24 listed images rounding may read 12, every other one, and of these every third is measured."""
    monkeypatch.setattr(equalize, "FITTING_IMAGES", 12)
    (tmp_path / "out").mkdir()
    equalize.run(replace(equalize.take_settings(make_config()), images=4), inputs, tmp_path / "out")
    listed = read_calibration_list(inputs["calibset"] / "calibration.txt")
    spec = make_config().preprocess
    sources = [listed[index].source for index in (0, 6, 12, 18)]
    chosen = np.stack([preprocess.load(spec, source.content(), raw=False) for source in sources]).astype(np.float32)
    old = ranges(onnx.load(inputs["export"] / "model.onnx"), chosen)
    new = ranges(onnx.load(tmp_path / "out" / "model.onnx"), chosen)
    alone = "/layer1/layer1.0/relu/Relu_output_0"
    ratios = old[alone] / old[alone].max()
    np.testing.assert_allclose(new[alone] / new[alone].max(), np.sqrt(np.maximum(ratios, 1e-4)), rtol=1e-3)


def test_run_gives_equal_bytes_when_repeated(make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(make_config(), inputs, tmp_path / name)
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


@pytest.mark.parametrize("activation", [nn.LeakyReLU(), nn.SiLU(), nn.ReLU6()])
def test_run_leaves_the_model_as_it_is_when_no_channel_can_be_rescaled(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, activation: nn.Module
) -> None:
    """As in MobileNets, EfficientNets and Darknets without residual additions: nothing has to be measured."""
    torch.manual_seed(0)
    head = (nn.MaxPool2d(8), nn.Flatten(), nn.Linear(128, 4))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), activation, *head)
    onnx.save(exporter.to_onnx(network, (3, 32, 32)), inputs["export"] / "model.onnx")
    before, after = run(make_config(), inputs, tmp_path / "out")
    assert list(scaled_tensors(before, placement.observed_tensors(before))) == []
    assert list(after.graph.node) == list(before.graph.node)
    weights = [{tensor.name: tensor for tensor in model.graph.initializer} for model in (before, after)]
    assert weights[0] == weights[1]


def test_later_stages_work_on_the_rescaled_model(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Calibration observes it, and its weights are those that are quantized."""
    _, after = run(make_config(), inputs, tmp_path / "equalize")
    folders = {**inputs, "equalize": tmp_path / "equalize"}
    for stage, name in ((calibrate, "calibrate"), (thresholds, "thresholds"), (quantize, "quantize")):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        stage.run(stage.take_settings(make_config("backend.quantize.calibrate_mode=max")), folders, folders[name])
    int8 = onnx.load(folders["quantize"] / "model.onnx")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    makers = {made: node for node in int8.graph.node for made in node.output}
    originals = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    wanted = next(node for node in after.graph.node if node.name == "/layer1/layer1.0/conv2/Conv")
    found = next(node for node in int8.graph.node if node.name == wanted.name)
    scales = stored[makers[found.input[1]].input[1]]
    weights = originals[wanted.input[1]]
    sums = largest_sums(weights.reshape(len(weights), -1), weight_pairs(weights.shape))
    largest = np.abs(weights).max(axis=(1, 2, 3))
    np.testing.assert_allclose(scales, np.maximum(largest / 127, sums / 128), rtol=1e-6)


def test_package_keeps_the_exported_model_as_its_float32_reference(finished: FinishedBuild) -> None:
    package = finished.package
    (exported,) = (finished.workspace / ".cache" / "export").glob("*/model.onnx")
    float32 = package.workspace_file("float32_model")
    assert float32 is not None
    assert float32.read_bytes() == exported.read_bytes()
