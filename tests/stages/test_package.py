from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import pytest
from conftest import FinishedBuild

from pipeline.artefacts import verify
from pipeline.host.hardware import instruction_sets
from pipeline.packages.package import open_package
from pipeline.runtimes.opening import installed_runtimes, version_of


@pytest.fixture
def folder(finished: FinishedBuild) -> Path:
    return finished.package.folder


def read(path: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_run_states_the_facts_of_the_build(folder: Path) -> None:
    facts = read(folder / "package.json")
    versions = facts.pop("versions")
    workspace = facts.pop("workspace")
    proven = facts.pop("proven")
    assert proven == {
        runtime.value: {
            "version": version_of(runtime),
            "instruction_sets": instruction_sets(runtime.value),
            "verdict": "good",
            "cause": "",
        }
        for runtime in installed_runtimes()
    }
    assert facts == {
        "name": "tiny",
        "dtype": "int8",
        "input": [3, 32, 32],
        "input_dtype": "uint8",
        "scores": "logits",
        "calibrate_mode": "percentile",
        "percentile": 99.9999,
        "target": "any",
        "sample": False,
        "checked_on": instruction_sets(),
    }
    assert isinstance(versions, dict)
    assert versions["python"] == platform.python_version()
    assert versions["onnxruntime"] == metadata.version("onnxruntime")
    assert isinstance(workspace, dict)
    assert sorted(workspace) == ["float32_model", "quantized_from"]
    for path in workspace.values():
        assert (folder / path).is_file()
        assert not Path(path).is_absolute()
    assert (folder / workspace["float32_model"]).resolve().parent.parent.name == "export"
    assert (folder / workspace["quantized_from"]).resolve().parent.parent.name == "arrange"


def test_run_keeps_the_whole_build_file_and_what_it_was_calibrated_on(folder: Path, finished: FinishedBuild) -> None:
    assert read(folder / "build.json") == finished.config().as_dict()
    assert list(read(folder / "thresholds.json"))[-1] == "int8_pipeline.pixels"
    assert len(read(folder / "thresholds.json")) == 10
    calibration = (folder / "calibration.txt").read_text(encoding="utf-8").splitlines()
    assert f"# root: {finished.file.parent}/images" in calibration
    assert len([line for line in calibration if not line.startswith("#")]) == 20


def test_run_describes_the_preprocessing_that_the_build_used(folder: Path, finished: FinishedBuild) -> None:
    assert open_package(folder).preprocess() == finished.config().preprocess


def test_manifest_lists_every_file_of_the_package(folder: Path) -> None:
    listed = set(verify(folder)["files"]) | {"manifest.json"}
    assert listed == {path.name for path in folder.iterdir()}
