"""torch_programs.py: TorchScript and programs of torch.export become ONNX, and say what they cannot do."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipeline.building import build
from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.errors import ConfigError, DataError
from pipeline.onnx_models import classifier
from pipeline.packages.package import open_package
from pipeline.prepare import frontends
from pipeline.weights import torch_programs

pytestmark = [
    pytest.mark.slow,  # each starts a process with torch
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
MakeConfig = Callable[..., BuildConfig]
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)


class Small(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        if x.shape[2] > 3:
            x = x * 2.0
        out: torch.Tensor = self.fc(x.mean((2, 3)))
        return out


def save(path: Path, how: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Save a network as TorchScript or as a program; return what it answers for `IMAGES`."""
    torch.manual_seed(0)
    network, example = Small().eval(), torch.zeros(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "scripted":
            torch.jit.script(network).save(str(path))  # type: ignore[no-untyped-call]
        elif how == "traced":
            torch.jit.trace(network, example).save(str(path))  # type: ignore[no-untyped-call]
        else:
            batch = 1 if how == "program of one" else 2
            free = ({0: torch.export.Dim("batch")},) if how == "free program" else None
            torch.export.save(torch.export.export(network, (example[:batch],), dynamic_shapes=free), str(path))
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(IMAGES)), np.float32)


class Resizing(Small):
    def __init__(self, mode: str, side: int) -> None:
        super().__init__()
        self.mode, self.side = mode, side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (self.side, self.side + 3)
        return super().forward(nn.functional.interpolate(x, size=size, mode=self.mode, antialias=True))


@pytest.mark.parametrize(("mode", "side"), [("bilinear", 9), ("bicubic", 13), ("bilinear", 40)])
@pytest.mark.parametrize("how", ["traced", "program"])
def test_to_onnx_takes_an_antialiased_resize(tmp_path: Path, mode: str, side: int, how: str) -> None:
    torch.manual_seed(0)
    network, path = Resizing(mode, side).eval(), tmp_path / "n.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "traced":
            torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save(str(path))  # type: ignore[no-untyped-call]
        else:
            free = ({0: torch.export.Dim("batch")},)
            torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=free), path)
    with torch.inference_mode():
        expected = np.asarray(network(torch.from_numpy(IMAGES)))
    torch_programs.to_onnx(path, tmp_path / "n.onnx", (3, 32, 32))
    model = classifier.load(tmp_path / "n.onnx", (3, 32, 32))
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize("how", ["scripted", "traced", "program of one", "program of two", "free program"])
def test_to_onnx_computes_what_the_file_does_for_any_batch(tmp_path: Path, how: str) -> None:
    expected = save(tmp_path / "n.pt", how)
    answers = torch_programs.to_onnx(tmp_path / "n.pt", tmp_path / "n.onnx", (3, 32, 32), IMAGES)
    assert answers is not None
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    model = classifier.load(tmp_path / "n.onnx", (3, 32, 32))
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, atol=1e-5)
    assert torch_programs.is_program(tmp_path / "n.pt")
    assert torch_programs.input_hw(tmp_path / "n.pt") == ((32, 32) if "program" in how else None)


def test_to_onnx_names_the_size_that_a_program_was_exported_for(tmp_path: Path) -> None:
    save(tmp_path / "n.pt2", "program of one")
    with pytest.raises(DataError, match=r"n.pt2: was exported for inputs of \[1, 3, 32, 32\], frontend.shape says"):
        torch_programs.to_onnx(tmp_path / "n.pt2", tmp_path / "n.onnx", (3, 48, 48))


def test_to_onnx_takes_a_program_that_was_exported_for_any_size(tmp_path: Path) -> None:
    """As torch 2.14.1 exports with Dim.AUTO for height and width: no size stands in the file."""
    path = tmp_path / "free.pt2"
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    torch.export.save(torch.export.export(network.eval(), (torch.zeros(2, 3, 40, 48),), dynamic_shapes=(sizes,)), path)
    assert torch_programs.input_hw(path) is None
    answers = torch_programs.to_onnx(path, tmp_path / "m.onnx", (3, 32, 32), IMAGES)
    model = classifier.load(tmp_path / "m.onnx", (3, 32, 32))
    with torch.no_grad():
        wanted = network(torch.from_numpy(IMAGES)).numpy()
    assert np.allclose(classifier.run(model, IMAGES), wanted, atol=1e-5)
    assert answers is not None and np.allclose(answers, wanted, atol=1e-5)


class Baked(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(torch.relu(self.first(x)).reshape(8, 8, 256).mean(2))
        return out


def test_to_onnx_says_the_cause_alone_where_a_file_takes_other_inputs(tmp_path: Path) -> None:
    """TorchScript's own message is a traceback of its code; the cause is its last line."""
    torch.jit.trace(Baked().eval(), torch.zeros(8, 3, 32, 32)).save(str(tmp_path / "w.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(DataError) as caught:
        torch_programs.to_onnx(tmp_path / "w.pt", tmp_path / "m.onnx", (3, 32, 32))
    assert str(caught.value) == (
        f"{tmp_path}/w.pt: does not run on an image of [3, 32, 32] (RuntimeError: shape '[8, 8, 256]' is invalid for "
        "input of size 2048); give its own size, or save it again so that its one positional input is [1, channels, "
        "height, width]"
    )


def test_to_onnx_asks_for_float32_where_a_program_computes_in_bfloat16(tmp_path: Path) -> None:
    example = torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)
    torch.export.save(torch.export.export(Small().eval().bfloat16(), (example,)), tmp_path / "n.pt2")
    with pytest.raises(DataError, match=r"; export it as float32, after model.float\(\), not bfloat16$"):
        torch_programs.to_onnx(tmp_path / "n.pt2", tmp_path / "n.onnx", (3, 32, 32))


def test_to_onnx_says_why_torch_cannot_load_a_damaged_file(tmp_path: Path) -> None:
    save(tmp_path / "n.pt", "traced")
    with zipfile.ZipFile(tmp_path / "n.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "n.pt", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"def forward", b"dxf forward") if name.endswith(".py") else content)
    with pytest.raises(DataError, match=r"n.pt: torch .* cannot load this TorchScript file \("):
        torch_programs.to_onnx(tmp_path / "n.pt", tmp_path / "n.onnx", (3, 32, 32))


@pytest.mark.parametrize("how", ["scripted", "free program"])
def test_build_takes_a_program_and_says_that_its_code_was_run(
    make_config: MakeConfig, tmp_path: Path, image_tree: Path, how: str
) -> None:
    classes = sum(path.is_dir() for path in image_tree.iterdir())
    torch.manual_seed(0)
    network = Small(classes).eval()
    if how == "scripted":
        torch.jit.script(network).save(str(tmp_path / "n.pt"))  # type: ignore[no-untyped-call]
    else:
        example = (torch.zeros(2, 3, 32, 32),)
        program = torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, str(tmp_path / "n.pt"))
    said: list[str] = []
    cfg = make_config("frontend.type=pytorch", f"frontend.checkpoint={tmp_path}/n.pt")
    package = open_package(build(cfg, said.append).prefix)
    assert f"note: {tmp_path}/n.pt: {torch_programs.TRUST}" in said
    given = package.report()["proof"]["given"]
    assert (given["source"], given["verdict"], given["same_answers"]) == ("torch", "good", given["images"])
    float32 = package.workspace_file("float32_model")
    assert float32 is not None
    with torch.inference_mode():
        expected = network(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(classifier.run(onnx.load(float32), IMAGES), expected, atol=1e-5)


def test_init_writes_a_build_file_for_a_program(
    tmp_path: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    classes = sum(path.is_dir() for path in image_tree.iterdir())
    network = Small(classes).eval()
    torch.jit.script(network).save("n.pt")  # type: ignore[no-untyped-call]
    flags = ["--weights", "n.pt", "--dataset", str(image_tree)]
    assert main(["init", "x.yaml", *flags]) == 2
    assert "n.pt: is TorchScript, which does not keep the size of its input; give --size" in capsys.readouterr().err
    assert main(["init", "x.yaml", *flags, "--size", "48"]) == 0
    cfg = load_build_file("x.yaml")
    assert (cfg.frontend.type.value, cfg.frontend.chw) == ("pytorch", (3, 48, 48))
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 32, 32),)), "n.pt2")
    assert main(["init", "y.yaml", "--weights", "n.pt2", "--dataset", str(image_tree)]) == 0
    assert load_build_file("y.yaml").frontend.chw == (3, 32, 32)


def test_check_refuses_weights_alone_for_a_frontend_of_type_pytorch(make_config: MakeConfig, tmp_path: Path) -> None:
    torch.save(Small().state_dict(), tmp_path / "w.pth")
    cfg = make_config("frontend.type=pytorch", f"frontend.checkpoint={tmp_path}/w.pth")
    with pytest.raises(ConfigError, match=r"w.pth holds only weights, a frontend of type pytorch expects TorchScript"):
        frontends.check(cfg.frontend)
