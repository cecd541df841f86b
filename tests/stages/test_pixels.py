"""The pixels stage: the model it writes, and what a build makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.onnx_models import classifier
from pipeline.packages.package import open_package
from pipeline.quant.pixels import PIXELS, are_input_of
from pipeline.runtimes.opening import installed_runtimes, open_backend, place
from pipeline.stages import pixels

MakeConfig = Callable[..., BuildConfig]


def quiet(line: str) -> None:
    pass


@pytest.fixture
def inputs(tiny_onnx: Path, tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(tiny_onnx.read_bytes())
    return {"export": folder}


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> tuple[onnx.ModelProto, str]:
    out.mkdir()
    pixels.run(pixels.take_settings(cfg), inputs, out)
    return onnx.load(out / "model.onnx"), json.loads((out / "figures.json").read_text())["input"]


def test_run_folds_the_normalisation_of_the_build_file(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, spec: PreprocessSpec, tiny_onnx: Path
) -> None:
    model, said = run(make_config(), inputs, tmp_path / "out")
    assert said == "uint8 pixels"
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 44), dtype=np.uint8)
    expected = classifier.run(onnx.load(tiny_onnx), preprocess.apply(spec, image)[None])
    raw = preprocess.prepare(spec, image, raw=True)[None].astype(np.float32)
    assert classifier.relative_error(expected, classifier.run(model, raw)) < 2e-3


def test_run_keeps_a_model_that_cannot_take_pixels_and_says_why(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(inputs["export"] / "model.onnx")
    given = model.graph.input[0].name
    model.graph.node.insert(0, onnx.helper.make_node("Relu", [given], ["rectified"], "first"))
    for node in list(model.graph.node)[1:]:
        for position, name in enumerate(node.input):
            if name == given:
                node.input[position] = "rectified"
    onnx.save(model, inputs["export"] / "model.onnx")
    kept, said = run(make_config(), inputs, tmp_path / "out")
    assert kept == model
    assert said == "float32, since the input is read by Relu, not by one Conv"
    assert not are_input_of(kept)


@pytest.mark.slow
@pytest.mark.parametrize("tools", [(), ("backend.quantize.bias_correction=false",)])
def test_package_takes_pixels_and_agrees_with_one_that_does_not(
    make_config: MakeConfig, tmp_path: Path, batch_nchw: npt.NDArray[np.float32], image_tree: Path, tools: tuple[str]
) -> None:
    own = open_package(build(make_config(*tools), quiet).prefix)
    usual = open_package(
        build(
            make_config(*tools, "backend.quantize.pixel_input=false", f"workspace.path={tmp_path}/usual"), quiet
        ).prefix
    )
    assert (own.takes_pixels, usual.takes_pixels) == (True, False)
    ranges = json.loads((own.folder / "thresholds.json").read_text())
    assert ranges[PIXELS] == {"low": 0.0, "high": 255.0}
    paths = sorted(image_tree.rglob("*.JPEG"))
    raw = np.stack([preprocess.load(own.preprocess(), path, raw=True) for path in paths])
    float32 = own.workspace_file("float32_model")
    assert float32 is not None
    expected = classifier.run(onnx.load(float32), batch_nchw)
    for runtime in installed_runtimes():
        for package, fed in ((own, raw), (usual, batch_nchw)):
            with open_backend(runtime, package.model, batch=len(paths), placement=place(1, 1)) as backend:
                assert classifier.relative_error(expected, backend.infer(fed)) < 0.06


@pytest.mark.slow
def test_build_keeps_the_first_layer_in_float_on_pixels_too(
    make_config: MakeConfig, batch_nchw: npt.NDArray[np.float32]
) -> None:
    package = open_package(build(make_config("backend.quantize.skip_conv_layers=[0]"), quiet).prefix)
    assert package.takes_pixels
    assert package.report()["layers"] == {"weighted": 7, "quantized": 5}
