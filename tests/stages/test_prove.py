"""The proof of a tiny network, beside computations of its own, and with runtimes that really die."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.data import preprocess
from pipeline.errors import DataError
from pipeline.host import hardware, isolated
from pipeline.packages.package import open_package
from pipeline.reports.summary import summarize
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import installed_runtimes, version_of
from pipeline.stages import calibrate, calibset, convert, export, prove, quantize, thresholds

MakeConfig = Callable[..., BuildConfig]
Float32 = npt.NDArray[np.float32]

INT8 = {"calibset": calibset, "export": export, "calibrate": calibrate, "thresholds": thresholds, "quantize": quantize}
FLOAT = {"calibset": calibset, "export": export, "convert": convert}


def make(cfg: BuildConfig, root: Path, stages: dict[str, Any]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for name, stage in stages.items():
        out = root / name
        out.mkdir(parents=True)
        stage.run(stage.take_settings(cfg), folders, out)
        folders[name] = out
    return folders


@pytest.fixture
def inputs(make_config: MakeConfig, tmp_path: Path) -> dict[str, Path]:
    """What the stages before left."""
    return make(make_config(), tmp_path / "inputs", INT8)


def run(cfg: BuildConfig, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    out.mkdir()
    prove.run(prove.take_settings(cfg), inputs, out)
    found: dict[str, Any] = json.loads((out / "check.json").read_text(encoding="utf-8"))
    return found


def answers(model: Path, images: Float32) -> Float32:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def sqnr_db(wanted: Float32, found: Float32) -> float:
    wanted, found = (each - each.mean(axis=1, keepdims=True) for each in (wanted, found))
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


def test_run_proves_the_file_and_every_runtime(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    check = run(make_config(), inputs, tmp_path / "out")
    names = sorted(runtime.value for runtime in installed_runtimes())
    found = check["proof"]
    assert sorted(found) == ["exact", "given", "runtimes"]
    assert found["given"]["verdict"] == "good"
    assert sorted(found["runtimes"]) == sorted(check["agreement"]) == names
    expected = np.load(inputs["calibrate"] / "outputs.npy")
    cfg, listed = make_config(), (inputs["calibset"] / "calibration.txt").read_text().splitlines()
    paths = [tmp_path / "images" / line.split("\t")[1] for line in listed if not line.startswith("#")]
    images = np.stack([preprocess.apply(cfg.preprocess, preprocess.decode(path)) for path in paths])
    exact = answers(inputs["quantize"] / "model.onnx", images)
    assert found["exact"]["sqnr_db"] == pytest.approx(sqnr_db(expected, exact), abs=0.01)
    assert found["exact"]["verdict"] == "good"
    assert found["exact"]["largest_output"] == pytest.approx(float(np.abs(expected).max()), rel=1e-3)
    for name, each in found["runtimes"].items():
        assert each["verdict"] == "good"
        assert each["version"] == version_of(Runtime(name))
        assert each["instruction_sets"] == hardware.instruction_sets(name)
        assert each["images"] == each["float32"]["images"] == check["agreement"][name]["images"] == 20
        assert each["float32"]["same_answers"] == check["agreement"][name]["agreeing"] >= 18
        # Beside exact arithmetic a runtime is nearer than beside float32.
        assert each["sqnr_db"] is None or each["sqnr_db"] > each["float32"]["sqnr_db"]
        assert each["executed"]["int8"] >= 1


def test_run_refuses_a_float32_model_that_computes_something_else(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """As a faulty or stale stage between export and calibration would make it; the int8 model is compared with it."""
    model = onnx.load(inputs["export"] / "model.onnx")
    (bias,) = [each for each in model.graph.initializer if each.name == model.graph.node[-1].input[2]]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1), bias.name))
    equalized = tmp_path / "inputs" / "equalize"
    equalized.mkdir()
    onnx.save(model, equalized / "model.onnx")
    with pytest.raises(DataError, match="the model made of it for int8 differs by 1 on outputs of up to "):
        run(make_config(), {**inputs, "equalize": equalized}, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(("on_images", "checked_on"), [(True, 20), (False, 8)])
def test_run_proves_float_models_on_what_images_there_are(
    make_config: MakeConfig, tmp_path: Path, dtype: str, on_images: bool, checked_on: int
) -> None:
    cfg = make_config(f"backend.dtype={dtype}")
    stages = FLOAT if on_images else {name: stage for name, stage in FLOAT.items() if name != "calibset"}
    check = run(cfg, make(cfg, tmp_path / "inputs", stages), tmp_path / "out")
    assert all(counts == {"images": checked_on, "agreeing": checked_on} for counts in check["agreement"].values())
    exact = check["proof"]["exact"]
    assert (exact["sqnr_db"] is None) == (dtype == "fp32")
    assert exact["sqnr_db"] is None or exact["sqnr_db"] > 50
    assert all(each["executed"] is None for each in check["proof"]["runtimes"].values())


def change_scores(path: Path, factor: float, added: Float32) -> None:
    """Let a model give its scores times a factor, and something added."""
    model = onnx.load(path)
    output, constants = model.graph.output[0].name, {"factor": np.array([[factor]], np.float32), "added": added}
    for node in model.graph.node:
        node.output[:] = ["given" if name == output else name for name in node.output]
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    model.graph.node.append(onnx.helper.make_node("Mul", ["given", "factor"], ["multiplied"], "multiply"))
    model.graph.node.append(onnx.helper.make_node("Add", ["multiplied", "added"], [output], "add"))
    onnx.save(model, path)


def test_run_refuses_a_model_that_collapsed(make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path) -> None:
    change_scores(inputs["export"] / "model.onnx", -1.0, np.zeros((1, 4), np.float32))
    with pytest.raises(DataError) as caught:
        run(make_config(), inputs, tmp_path / "out")
    assert str(caught.value).startswith(
        "the int8 model collapsed: in exact arithmetic it gives the answer of float32 on 0 of 20 calibration images, "
        "-6.0 dB; "
    )
    assert not list((tmp_path / "out").iterdir())


def test_run_is_suspicious_when_float32_gives_every_image_the_same_scores(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing is lost then, but nothing was compared either."""
    scores = np.array([[4.0, -1.0, 0.5, 2.0]], np.float32)
    for stage in ("export", "quantize"):
        change_scores(inputs[stage] / "model.onnx", 0.0, scores)
    exact = run(make_config(), inputs, tmp_path / "out")["proof"]["exact"]
    assert (exact["verdict"], exact["same_answers"], exact["sqnr_db"]) == ("suspicious", 20, None)
    assert exact["cause"].startswith("float32 itself gives every image the same scores")


@pytest.mark.slow
def test_run_keeps_what_the_export_found_of_the_given_file(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    given = {"source": "net.onnx", "verdict": "suspicious", "cause": "Resize; export again"}
    (inputs["export"] / "given.json").write_text(json.dumps(given), encoding="utf-8")
    assert run(make_config(), inputs, tmp_path / "out")["proof"]["given"] == given


def test_run_says_which_images_are_gone_when_they_were_removed(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "images" / "n90000002")
    with pytest.raises(DataError, match=r"5 of 20 images are not in .*/images \(first: n90000002/"):
        run(make_config(), inputs, tmp_path / "out")


def kill_at_import(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a library before the real one that ends the process with a segmentation fault when it is imported."""
    (folder / name).mkdir(parents=True)
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (folder / name / "__init__.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.slow
@pytest.mark.openvino
def test_build_leaves_out_a_runtime_that_dies_and_lives(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    kill_at_import("openvino", tmp_path / "deadly", monkeypatch)
    built = build(make_config(), lambda line: None)
    package = open_package(built.prefix)
    report = package.report()
    assert list(report["agreement"]) == ["onnxruntime"]
    assert report["proof"]["runtimes"]["openvino"]["verdict"] == "lost"
    assert report["proof"]["runtimes"]["openvino"]["cause"] == "died by SIGSEGV"
    assert package.facts["proven"]["openvino"]["verdict"] == "lost"
    lines = summarize(built)
    assert lines[0].endswith("same class as float32 on calibration images: 20/20 in onnxruntime")
    assert "openvino left out: it died by SIGSEGV" in lines


@pytest.mark.slow
def test_build_ends_when_no_runtime_is_left(
    make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("openvino", "onnxruntime"):
        kill_at_import(name, tmp_path / "deadly", monkeypatch)
    with pytest.raises(DataError) as caught:
        run(make_config(), inputs, tmp_path / "out")
    assert str(caught.value).startswith("the int8 model cannot be used in any installed runtime: ")
    assert "onnxruntime died by SIGSEGV" in str(caught.value)


@pytest.mark.slow
def test_run_says_what_a_runtime_refuses(make_config: MakeConfig, inputs: dict[str, Path], tmp_path: Path) -> None:
    """A file whose weights are gone loads nowhere: neither in exact arithmetic."""
    model = onnx.load(inputs["quantize"] / "model.onnx")
    weights = next(each for each in model.graph.initializer if numpy_helper.to_array(each).ndim == 4)
    model.graph.initializer.remove(weights)
    onnx.save(model, inputs["quantize"] / "model.onnx")
    with pytest.raises(DataError) as caught:
        run(make_config(), inputs, tmp_path / "out")
    for runtime in installed_runtimes():
        assert runtime.value in str(caught.value)
    assert "does not load it" in str(caught.value)


@pytest.mark.openvino
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the switch is oneDNN's of x86")
def test_settings_change_with_the_instruction_sets_that_a_runtime_may_use(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "INT8_PIPELINE_MAX_ISA"):
        monkeypatch.delenv(name, raising=False)
    base = prove.take_settings(make_config())
    assert prove.take_settings(make_config("name=other", "dataset.sampler.seed=3")) == base
    others = []
    for name in ("ONEDNN_MAX_CPU_ISA", "INT8_PIPELINE_MAX_ISA"):
        monkeypatch.setenv(name, "AVX2")
        others.append(prove.take_settings(make_config()))
        monkeypatch.delenv(name)
    assert base not in others
    assert others[0] != others[1]  # the second holds ONNX Runtime too


def test_environment_reaches_the_process_of_a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert isolated.call(os.getenv, "ONEDNN_MAX_CPU_ISA", seconds=60) == "AVX2"
