from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from pipeline.config.build_config import BuildConfig
from pipeline.errors import ConfigError
from pipeline.quant import qdq
from pipeline.stages import calibrate, calibset, export, quantize, thresholds

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def inputs(make_config: MakeConfig, tmp_path: Path) -> dict[str, Path]:
    """What the stages before left."""
    folders: dict[str, Path] = {}
    for stage, name in (
        (calibset, "calibset"),
        (export, "export"),
        (calibrate, "calibrate"),
        (thresholds, "thresholds"),
    ):
        out = tmp_path / "inputs" / name
        out.mkdir(parents=True)
        stage.run(stage.take_settings(make_config()), folders, out)
        folders[name] = out
    return folders


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    out.mkdir()
    quantize.run(quantize.take_settings(cfg), inputs, out)
    return onnx.load(out / "model.onnx"), json.loads((out / "check.json").read_text(encoding="utf-8"))


def test_run_writes_the_model_and_counts_its_layers(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    model, check = run(make_config(), inputs, tmp_path / "out")
    assert qdq.count_quantized(model) == check["layers"] == {"weighted": 7, "quantized": 6}  # all but the classifier
    assert check["classifier"] == ["/fc/Gemm"]


def test_run_quantizes_with_the_thresholds_it_was_given(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    path = inputs["thresholds"] / "thresholds.json"
    ranges = json.loads(path.read_text(encoding="utf-8"))
    ranges["input"] = {"low": -2.55, "high": 2.55}
    path.write_text(json.dumps(ranges), encoding="utf-8")
    model, _ = run(make_config(), inputs, tmp_path / "out")
    scale = next(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert values[scale] == pytest.approx(0.02, rel=1e-6)


def test_run_raises_when_layers_to_leave_out_are_not_there(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^backend\.quantize\.skip_conv_layers: the model has no layer 'conv1'; "):
        run(make_config("backend.quantize.skip_conv_layers=[conv1]"), inputs, tmp_path / "out")
