from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "data_prep" / "export.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("export_iresnet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_line_of_the_documents_takes_the_weights_of_its_folder_or_the_published_ones(script: ModuleType) -> None:
    network = ["export", "--model_library", "official", "--model_name", "iresnet50", "--save_dir", "model/onnx"]
    assert script.as_export(["--model_name", "iresnet50"]) == [*network, "--pretrained_weights", "auto"]
    weights = Path("model/pretrained/iresnet50.pth")
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert script.as_export(["--model_name", "iresnet50"]) == [*network, "--pretrained_weights", str(weights)]


def test_script_runs_from_anywhere_and_names_the_nearest_network(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model_name", "iresnet51"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: frontend.model: official has no network 'iresnet51'; did you mean")
