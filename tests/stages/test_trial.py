"""Builds that measure their speed: the figures, where they are kept, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts import read_manifest
from pipeline.building import build, check
from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.errors import ConfigError
from pipeline.packages.choice import machine, runtime_for
from pipeline.packages.package import open_package
from pipeline.proof import speed
from pipeline.proof.speed import Candidate
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import installed_runtimes
from pipeline.stages import trial

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture(autouse=True)
def short_trial(no_trial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(speed.SECONDS, "0.5")


@pytest.mark.slow
def test_build_keeps_what_it_measured_and_auto_goes_by_it(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    assert main(["build", str(tmp_path / "tiny.yaml"), "--quiet"]) == 0
    said = "".join(capsys.readouterr())
    package = open_package(tmp_path / "workspace" / "tiny-int8-percentile-3_32_32-vacc")
    measured = package.speed()
    assert measured is not None
    assert measured["machine"] == machine()
    assert sorted(measured["runtimes"]) == sorted(runtime.value for runtime in installed_runtimes())
    for each in measured["runtimes"].values():
        assert each["int8"] > 0
        assert each["ratio"] > 0
        assert each["interval"] is None or each["interval"][0] <= each["ratio"] <= each["interval"][1]
    chosen = runtime_for(package, Runtime.AUTO)
    if measured["fastest"] is not None:
        assert chosen.value == measured["fastest"]
    assert f"in {chosen.value}" in said
    assert "as fast as float32" in said or "is not known" in said
    if len(installed_runtimes()) > 1:
        assert f"auto takes {chosen.value}" in said
    assert main(["build", str(tmp_path / "tiny.yaml"), "--quiet"]) == 0
    assert "as fast" not in capsys.readouterr().out  # nothing was built: nothing to say


@pytest.mark.slow
def test_equal_builds_differ_in_measured_figures_only(make_config: MakeConfig, tmp_path: Path) -> None:
    folders = [
        build(make_config(f"workspace.path={tmp_path / name}"), lambda line: None).prefix.parent
        for name in ("one", "two")
    ]
    listed = [read_manifest(folder)["files"] for folder in folders]
    assert "figures.json" in listed[0]
    for files in listed:
        del files["figures.json"], files["build.json"]  # which names the workspace
    assert listed[0] == listed[1]


@pytest.mark.slow
def test_build_measures_nothing_when_told_so_and_float_packages_never(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_package(build(make_config("backend.dtype=fp16"), lambda line: None).prefix).speed() is None
    monkeypatch.setenv(speed.SECONDS, "0")
    built = build(make_config(), lambda line: None)
    assert "trial" not in built.stages
    assert open_package(built.prefix).speed() is None


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9"])
def test_check_refuses_a_time_that_is_none(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(speed.SECONDS, text)
    with pytest.raises(ConfigError) as caught:
        check(make_config())
    assert str(caught.value) == f"INT8_PIPELINE_TRIAL_SECONDS: expected 0 to 3600 seconds, got {text!r}"


@pytest.mark.slow
@pytest.mark.openvino
def test_measure_measures_the_others_when_a_runtime_dies(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "openvino").mkdir()
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "openvino" / "__init__.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    candidates = [
        Candidate(runtime, precision, tiny_onnx)
        for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME)
        for precision in ("int8", "float32")
    ]
    found = trial.measure(candidates, 0.5)
    assert found is not None
    assert list(found["runtimes"]) == ["onnxruntime"]
    assert found["fastest"] == "onnxruntime"


def test_settings_change_with_the_machine(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    base = trial.take_settings(make_config())
    monkeypatch.setattr("pipeline.host.hardware.cpu_name", lambda: "another CPU")
    assert trial.take_settings(make_config()) != base
