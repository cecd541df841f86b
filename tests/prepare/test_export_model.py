"""export_model.py: a network of a library as ONNX or TorchScript, computing what torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from torch import nn

from pipeline.commands.cli import main
from pipeline.host.extras import install_command
from pipeline.models import libraries, zoo
from pipeline.weights import published

SIZE, CLASSES = 32, 5


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return zoo.build_network(zoo.find_model("timm", "resnet18"), CLASSES).eval()


@pytest.fixture
def weights(network: nn.Module, tmp_path: Path) -> Path:
    torch.save(network.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def line(tmp_path: Path, *more: str) -> list[str]:
    network = [
        "--model_library",
        "timm",
        "--model_name",
        "resnet18",
        "--size",
        str(SIZE),
        "--num_classes",
        str(CLASSES),
    ]
    return ["export", *network, "--save_dir", str(tmp_path / "onnx"), *more]


def wanted(network: nn.Module, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        found: npt.NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.slow
def test_export_writes_torchscript_when_the_mode_is_pt(
    network: nn.Module, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line(tmp_path, "--pretrained_weights", str(weights), "--convert_mode", "pt")) == 0
    path = tmp_path / "onnx" / f"resnet18_{SIZE}.pt"
    assert capsys.readouterr().out.startswith(f"{path}: largest difference from torch 0.0e+00 of the largest logit")
    loaded = torch.jit.load(path)  # type: ignore[no-untyped-call]
    for batch in (1, 3):
        images = np.random.default_rng(batch).normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
        np.testing.assert_allclose(wanted(loaded, images), wanted(network, images), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_export_takes_the_published_weights_when_none_are_given(
    network: nn.Module, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(row: zoo.Model, where: str) -> Path:
        asked.append((row.library, row.name, where))
        return weights

    monkeypatch.setattr(published, "fetch", fetch)  # which would ask the network
    assert main(line(tmp_path)) == 0
    assert asked == [("timm", "resnet18", "--pretrained_weights")]
    images = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    session = ort.InferenceSession(tmp_path / "onnx" / f"resnet18_{SIZE}.onnx")
    found = session.run(None, {"input": images})[0]
    np.testing.assert_allclose(found, wanted(network, images), atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--pretrained_weights", "none.pth"), "--pretrained_weights none.pth: no such file"),
        (("--size", "8"), "--size: must be in 32..2048 px, got 8"),
        (
            ("--model_name", "resnet19"),
            "--model_name: 'resnet19': did you mean 'resnet18'? Any other needs timm itself, which is not "
            f"installed; run: {install_command('timm')}",
        ),
    ],
)
def test_export_names_the_flag_when_its_value_is_wrong(
    tmp_path: Path,
    more: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "is_installed", lambda _: False)
    assert main(line(tmp_path, *more)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_export_names_save_dir_when_it_cannot_be_written(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "onnx").touch()
    assert main(line(tmp_path, "--pretrained_weights", str(weights))) == 2
    folder = tmp_path / "onnx"
    assert capsys.readouterr().err == f"error: --save_dir {folder}: cannot be written (File exists); give another\n"
