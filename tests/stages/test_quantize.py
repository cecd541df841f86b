from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.config.build_file import BuildConfig
from pipeline.errors import ConfigError, DataError
from pipeline.quant import qdq
from pipeline.runtimes.base import installed_runtimes
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
        stage.run(make_config(), folders, out)
        folders[name] = out
    return folders


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> tuple[onnx.ModelProto, dict[str, dict[str, int]]]:
    out.mkdir()
    quantize.run(cfg, inputs, out)
    return onnx.load(out / "model.onnx"), json.loads((out / "check.json").read_text(encoding="utf-8"))


def test_run_writes_the_model_and_compares_it_in_every_runtime(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    model, check = run(make_config(), inputs, tmp_path / "out")
    assert qdq.count_quantized(model) == check["layers"] == {"weighted": 7, "quantized": 6}  # all but the classifier
    assert check["classifier"] == ["/fc/Gemm"]
    assert set(check["agreement"]) == {runtime.value for runtime in installed_runtimes()}
    for counts in check["agreement"].values():
        assert counts["images"] == 20  # type: ignore[index]
        assert counts["agreeing"] >= 18  # type: ignore[index]


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


def test_run_refuses_the_model_when_it_answers_otherwise_than_float32(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """As the float32 answers are turned round, nine in twenty is the most that can agree."""
    outputs = np.load(inputs["calibrate"] / "outputs.npy")
    np.save(inputs["calibrate"] / "outputs.npy", -outputs)
    with pytest.raises(DataError) as caught:
        run(make_config(), inputs, tmp_path / "out")
    first = installed_runtimes()[0].value
    assert str(caught.value) == (
        f"the int8 model collapsed: in {first} it gives the answer of float32 on 0 of 20 calibration images; raise "
        "backend.quantize.percentile (now 99.9999) or set calibrate_mode: max"
    )


def test_identity_changes_with_granularity_layers_and_preprocessing_only(make_config: MakeConfig) -> None:
    base = quantize.identity(make_config())
    for same in ("backend.quantize.percentile=99", "name=other", "dataset.sampler.seed=3"):
        assert quantize.identity(make_config(same)) == base
    others = [
        quantize.identity(make_config(override))
        for override in (
            "backend.quantize.quantize_per_channel=false",
            "backend.quantize.skip_conv_layers=[0]",
            "backend.quantize.exclude_layers=[0]",
        )
    ]
    assert all(each != base for each in others)
    assert others[1] != others[2]


def test_run_says_which_images_are_gone_when_they_were_removed(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "images" / "n90000002")
    with pytest.raises(DataError, match=r"5 of 20 images are not in .*/images \(first: n90000002/"):
        run(make_config(), inputs, tmp_path / "out")
