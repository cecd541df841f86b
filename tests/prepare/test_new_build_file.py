"""init: five classes in five folders are as easy as ImageNet."""

from __future__ import annotations

import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from pipeline.building import build
from pipeline.commands.cli import main
from pipeline.config.build_file import load_build_file
from pipeline.models import exporter, zoo
from pipeline.packages.package import open_package

CLASSES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four png files a class, and one jpg."""
    for index, name in enumerate(CLASSES):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for image in range(4):
            pixels = np.random.default_rng((index, image)).integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{image}.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "pets" / "ant" / "other.jpg")
    return tmp_path / "pets"


def save_weights(path: Path, library: str, name: str, classes: int = len(CLASSES)) -> Path:
    torch.manual_seed(0)
    torch.save({"state_dict": zoo.build_network(zoo.find_model(library, name), classes).state_dict()}, path)
    return path


def test_init_finds_the_network_the_classes_and_the_kind_of_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(Path("w.pth"), "torchvision", "resnet18")
    assert main(["init", "pets.yaml", "--weights", "w.pth", "--dataset", "pets", "--size", "64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "21 images (20 png, 1 JPEG) of 5 classes in pets",
        "w.pth fits torchvision/resnet18 (or timm/resnet18: --model says which), 5 classes",
        "Resize 73, CenterCrop 64, ImageNet's mean and std: change them in the file where the network was trained "
        "otherwise",
        "pets.yaml written; next: python -m pipeline build pets.yaml",
    ]
    cfg = load_build_file("pets.yaml")
    assert (cfg.name, cfg.frontend.model, cfg.frontend.chw) == ("pets", "resnet18", (3, 64, 64))
    assert (cfg.frontend.num_classes, cfg.dataset.sampler.get_data_num) == (5, 21)
    assert cfg.preprocess.output_hw == (64, 64)


@pytest.mark.slow
def test_init_of_an_onnx_model_builds_and_names_the_classes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), *pooled)
    onnx.save(exporter.to_onnx(network.eval(), (3, 32, 32), "pixels"), "net.onnx")
    shutil.copytree(images, "other")
    arguments = ["init", "net.yaml", "--weights", "net.onnx", "--dataset", "pets", "--evaluation", "other"]
    assert main(arguments) == 0
    package = open_package(build(load_build_file("net.yaml"), lambda line: None).prefix)
    assert [known.name for known in package.classes()] == list(CLASSES)
    assert package.workspace_file("datalist") is not None


@pytest.mark.parametrize(
    ("library", "name"), [("official", "iresnet18"), ("paddleclas", "ResNet18_vd"), ("timm", "resnet50d")]
)
def test_init_tells_networks_apart(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], library: str, name: str
) -> None:
    weights = save_weights(tmp_path / "w.pth", library, name)
    arguments = ["init", str(tmp_path / "x.yaml"), "--weights", str(weights), "--dataset", str(images)]
    assert main(arguments) == 0
    assert f"fits {library}/{name}, 5 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("--model", "timm/resnet34"), "w.pth: is not of timm/resnet34; it fits torchvision/resnet18, timm/resnet18"),
        (("--model", "timm/resnet19"), "timm has no network 'resnet19'; did you mean"),
        (("--dataset", "nowhere"), "nowhere"),
        (("--dataset", "empty"), "empty: no images; give the folder of the images"),
        (("--weights", "ten.pth"), "ten.pth: has 10 classes, but pets has 5"),
        (("--weights", "odd.pth"), "odd.pth: fits no network of the table"),
        (("--weights", "bad.onnx"), "bad.onnx: is a text file that begins with 'no model'"),
        (("--size", "0"), "--size: must be in 1..16384, got 0"),
    ],
)
def test_init_says_what_is_wrong_in_a_line_and_writes_nothing(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    save_weights(Path("w.pth"), "torchvision", "resnet18")
    save_weights(Path("ten.pth"), "torchvision", "resnet18", classes=10)
    torch.save({"a.weight": torch.zeros(3, 3)}, "odd.pth")
    Path("bad.onnx").write_bytes(b"no model")
    flags = {"--weights": "w.pth", "--dataset": "pets", **dict([change])}
    assert main(["init", "x.yaml", *(part for flag in flags.items() for part in flag)]) == 2
    errors = capsys.readouterr().err
    assert text in errors
    assert len(errors.splitlines()) == 1
    assert not Path("x.yaml").exists()


def test_init_overwrites_nothing(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("mine", encoding="utf-8")
    weights = save_weights(tmp_path / "w.pth", "torchvision", "resnet18")
    assert main(["init", str(tmp_path / "x.yaml"), "--weights", str(weights), "--dataset", str(images)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "x.yaml").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_init_writes_through_a_pipe_and_follows_a_link(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(Path("w.pth"), "torchvision", "resnet18")
    flags = ["--weights", "w.pth", "--dataset", "pets", "--size", "64"]
    os.mkfifo("pipe")
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(Path("pipe").read_text)
        assert main(["init", "pipe", *flags]) == 0
        content = reader.result(30)
    assert stat.S_ISFIFO(os.lstat("pipe").st_mode)
    Path("link.yaml").symlink_to("w.yaml")
    assert main(["init", "link.yaml", *flags]) == 0
    assert Path("link.yaml").is_symlink()
    assert Path("w.yaml").read_text() == content.replace("name: w", "name: link")


@pytest.mark.slow
def test_init_keeps_the_key_of_the_weights_it_was_told_to_take(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = zoo.build_network(zoo.find_model("torchvision", "resnet18"), len(CLASSES)).state_dict()
    torch.save({"model": state, "model_ema": state}, "w.pth")
    flags = ["--weights", "w.pth", "--dataset", "pets", "--size", "64"]
    assert main(["init", "a.yaml", *flags]) == 0
    assert capsys.readouterr().err == (
        "note: w.pth: the averaged weights 'model_ema' taken, not 'model'; frontend.checkpoint_key (--checkpoint_key "
        "of init and export) takes the other\n"
    )
    assert load_build_file("a.yaml").frontend.checkpoint_key is None
    assert main(["init", "b.yaml", *flags, "--checkpoint_key", "model"]) == 0
    assert capsys.readouterr().err == ""
    assert load_build_file("b.yaml").frontend.checkpoint_key == "model"


def test_init_says_how_folders_are_sorted_when_they_are_numbers(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, number in zip(CLASSES, ("1", "2", "3", "10", "11"), strict=True):
        (images / name).rename(images / number)
    save_weights(Path("w.pth"), "torchvision", "resnet18")
    assert main(["init", "pets.yaml", "--weights", "w.pth", "--dataset", "pets", "--size", "64"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "class folders are numbers, sorted as text (1, 10, 11, 2, 3), as torchvision does; in numeric order they are "
        "1, 2, 3, 10, 11: set dataset.class_order: numeric in the build file if the network was trained so, else text; "
        "build measures which it is"
    )
