"""export.py of data_prep/, as the documents call it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from pipeline.models import zoo

SCRIPT = Path(__file__).parents[2] / "data_prep" / "export.py"


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )


def test_script_names_the_nearest_network_when_the_name_is_unknown(tmp_path: Path) -> None:
    done = run(tmp_path, "--model_name", "iresnet51")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --model_name: official has no network 'iresnet51'; did you mean")


def test_script_says_where_the_weights_go_when_there_are_none(tmp_path: Path) -> None:
    done = run(tmp_path, "--model_name", "iresnet50")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --infile model/pretrained: no iresnet50.pth in it; download "
        f"{zoo.find_model('official', 'iresnet50').url} by hand and put it there\n"
    )


@pytest.mark.slow
def test_script_writes_what_torch_computes_when_the_folders_are_the_documents(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = zoo.build_network(zoo.find_model("official", "iresnet18"))
    weights = tmp_path / "model" / "pretrained" / "iresnet18.pth"
    weights.parent.mkdir(parents=True)
    torch.save(network.state_dict(), weights)
    done = run(tmp_path, "--model_name", "iresnet18")
    assert done.returncode == 0, done.stderr
    session = ort.InferenceSession(tmp_path / "model" / "onnx" / "iresnet18_224.onnx")
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        wanted = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(None, {"input": images})[0], wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
def test_script_names_its_flag_when_the_folder_cannot_be_written(tmp_path: Path) -> None:
    network = zoo.build_network(zoo.find_model("official", "iresnet18"))
    torch.save(network.state_dict(), tmp_path / "iresnet18.pth")
    (tmp_path / "taken").touch()
    done = run(tmp_path, "--model_name", "iresnet18", "--infile", ".", "--output", "taken")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --output taken: cannot be written (File exists); give another\n",
    )
