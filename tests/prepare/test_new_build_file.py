"""init: five classes in five folders are as easy as ImageNet."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image

from pipeline.building import build
from pipeline.commands.cli import main
from pipeline.config.build_file import load_build_file
from pipeline.config.choices import PreprocessAs
from pipeline.config.sections import AUTO
from pipeline.data.imagenet import list_dataset
from pipeline.host.extras import install_command
from pipeline.models import exporter, libraries, zoo
from pipeline.packages.package import open_package
from pipeline.weights.class_names import find_class_names

CLASSES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four png files per class, and one jpg."""
    for index, name in enumerate(CLASSES):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for image in range(4):
            pixels = np.random.default_rng((index, image)).integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{image}.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "pets" / "ant" / "other.jpg")
    return tmp_path / "pets"


@functools.cache
def _encoded_weights(library: str, name: str, classes: int) -> bytes:
    torch.manual_seed(0)
    content = io.BytesIO()
    torch.save({"state_dict": zoo.build_network(zoo.find_model(library, name), classes).state_dict()}, content)
    return content.getvalue()


def save_weights(path: Path, library: str, name: str, classes: int = len(CLASSES)) -> Path:
    path.write_bytes(_encoded_weights(library, name, classes))
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


def test_init_takes_folders_of_some_of_imagenets_classes_when_the_network_has_as_many(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wnids = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079")  # of Imagenette's
    for folder, wnid in zip(sorted(images.iterdir()), wnids, strict=True):
        folder.rename(images / wnid)
    save_weights(Path("w.pth"), "torchvision", "resnet18")
    assert main(["init", "net.yaml", "--weights", "w.pth", "--dataset", "pets", "--size", "64"]) == 0
    assert "of 5 classes in pets" in capsys.readouterr().out
    cfg = load_build_file("net.yaml")
    assert cfg.frontend.num_classes == 5
    assert main(["build", "net.yaml", "--dry-run"]) == 0


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
        (
            ("--model", "timm/resnet19"),
            "did you mean 'resnet18'? Any other needs timm itself, which is not installed; run: "
            f"{install_command('timm')}",
        ),
        (("--dataset", "nowhere"), "nowhere"),
        (("--dataset", "empty"), "empty: no images; give the folder of the images"),
        (("--weights", "ten.pth"), "ten.pth: has 10 classes, but pets has 5"),
        (("--weights", "odd.pth"), "odd.pth: fits no network of the table"),
        (("--weights", "odd.pth"), f"with timm or torchvision installed ({install_command('timm')}), theirs are tried"),
        (("--weights", "gone.onnx"), "error: --weights gone.onnx: no such file"),
        (("--weights", "gone.pth"), "error: --weights gone.pth: no such file"),
        (("--weights", "auto"), "error: --weights auto: give --model LIBRARY/NAME alone for the weights"),
        (("--weights", "bad.onnx"), "bad.onnx: is a text file that begins with 'no model'"),
        (("--size", "0"), "--size: must be in 1..16384, got 0"),
        (("--evaluation", "gone"), "error: --evaluation gone: no such folder or tar file\n"),
        (("--val_label", "gone.txt"), "gone.txt: cannot be read"),
        (("--model", "resnet18"), "error: --model resnet18: expected LIBRARY/NAME, as torchvision/resnet18;"),
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
    monkeypatch.setattr(libraries, "is_installed", lambda _: False)
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
    assert ".x.yaml" not in errors  # of the scratch file
    assert not Path("x.yaml").exists()


def test_init_says_so_when_weights_and_images_are_swapped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(Path("w.pth"), "torchvision", "resnet18")
    assert main(["init", "x.yaml", "--weights", "pets", "--dataset", "w.pth"]) == 2
    told = "--weights pets: is a folder, --dataset w.pth: is a file; give them the other way round"
    assert capsys.readouterr().err == f"error: {told}\n"


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
    averaged = {name: tensor.clone() for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": averaged}, "w.pth")
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


def save_onnx(path: Path, height: int | None = 32, width: int | None = 32, classes: int = len(CLASSES)) -> Path:
    torch.manual_seed(1)
    pooled = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, classes))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), *pooled)
    model = exporter.to_onnx(network.eval(), (3, height or 32, width or 32), "pixel_values")
    for size, axis in ((height, 2), (width, 3)):
        if size is None:
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis_{axis}"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


RECORD = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 48, "width": 48},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.25],
    "resample": 3,
}


@pytest.mark.parametrize("where", ["here", "above"])
def test_init_reads_what_transformers_wrote_beside_the_model(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_onnx(Path("hub/onnx/model.onnx"), None, None)
    folder = Path("hub/onnx" if where == "here" else "hub")
    (folder / "preprocessor_config.json").write_text(json.dumps(RECORD), encoding="utf-8")
    order = ["Dog", "cat, house cat", "eel", "ant", "bee"]
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(order))}), encoding="utf-8")
    assert main(["init", "x.yaml", "--weights", "hub/onnx/model.onnx", "--dataset", "pets"]) == 0
    record = (folder if where == "here" else tmp_path / "hub") / "preprocessor_config.json"
    assert capsys.readouterr().out.splitlines() == [
        "21 images (20 png, 1 JPEG) of 5 classes in pets",
        "the model's own order of the classes (Dog, cat, house cat, eel, ...) is not that of the folders: x.labels.txt",
        "hub/onnx/model.onnx: input 'pixel_values', 48 px",
        f"Resize [48, 48] (bicubic), CenterCrop 48, mean [0.5, 0.4, 0.3], std [0.2, 0.3, 0.25]: from {record}",
        "x.yaml written; next: python -m pipeline build x.yaml",
    ]
    cfg = load_build_file("x.yaml")
    assert (cfg.frontend.chw, cfg.preprocess.mean, cfg.preprocess.std) == (
        *((3, 48, 48), (0.5, 0.4, 0.3)),
        (0.2, 0.3, 0.25),
    )
    assert cfg.preprocess.filter.value == "BICUBIC_PILLOW"
    assert cfg.preprocess.preprocess_as is PreprocessAs.TRANSFORMERS
    dataset = list_dataset(Path("pets"), val_label=cfg.dataset.val_label, class_count=5)
    assert [known.id for known in dataset.classes] == ["dog", "cat", "eel", "ant", "bee"]
    assert len(dataset.samples) == 21
    assert all(dataset.classes[sample.class_index or 0].id in sample.source.name for sample in dataset.samples)


@pytest.mark.parametrize("within", [True, False])
def test_init_reads_what_timm_wrote_beside_the_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], within: bool
) -> None:
    """In an entry of the file, or as of 2021 and 2022 in the file itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(libraries, "is_installed", lambda _: False)
    save_weights(Path("w.pth"), "timm", "resnet18")
    record = {"input_size": [3, 288, 288], "crop_pct": 0.95, "interpolation": "bicubic", "crop_mode": "center"}
    record |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "resnet18", **({"pretrained_cfg": record} if within else record)}
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["init", "x.yaml", "--weights", "w.pth", "--dataset", "pets", "--size", "96"]) == 0
    assert (
        "Resize 101 (bicubic), CenterCrop 96, mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]: from config.json, whose size "
        "is 288" in capsys.readouterr().out
    )
    cfg = load_build_file("x.yaml")
    assert (cfg.preprocess.resize_hw, cfg.preprocess.mean) == ((101, 101), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("with_list", [True, False])
def test_init_says_once_what_is_left_out(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_list: bool
) -> None:
    weights = save_onnx(tmp_path / "net.onnx")
    listed = tmp_path / "l.txt"
    paths = sorted(images.rglob("*.*"))
    listed.write_text("".join(f"{path.parent.name}/{path.name} {CLASSES.index(path.parent.name)}\n" for path in paths))
    (images / "dog" / "x.heic").touch()
    flags = ["--val_label", str(listed)] if with_list else []
    command = ["init", f"{tmp_path}/x.yaml", "--weights", str(weights), "--dataset", str(images)]
    assert main([*command, "--evaluation", str(images), *flags]) == 0
    assert capsys.readouterr().err.count("left out 1 heic images") == 2  # of calibration, and of evaluation


@pytest.mark.parametrize(("name", "is_said"), [("image_embeds", True), ("last_hidden_state", True), ("logits", False)])
def test_init_says_where_an_output_is_named_like_an_embedding(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, is_said: bool
) -> None:
    """As transformers 4.57.6 and open_clip 3.3.0 name the outputs of image encoders."""
    path = save_onnx(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = model.graph.output[0].name = name
    onnx.save(model, path)
    assert main(["init", f"{tmp_path}/x.yaml", "--weights", str(path), "--dataset", str(images)]) == 0
    said = f"; output {name!r} is named like an embedding, which is no scores of classes"
    assert (said in capsys.readouterr().out) is is_said


@pytest.mark.parametrize(
    "entry",
    [
        {"class_to_idx": {name: 4 - index for index, name in enumerate(CLASSES)}},
        {"idx_to_class": {4 - index: name for index, name in enumerate(CLASSES)}},
        {"classes": [*CLASSES[::-1]]},
        {"meta": {"dataset_meta": {"classes": CLASSES[::-1]}}},
    ],
)
def test_init_takes_the_order_of_the_classes_that_a_checkpoint_holds(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    entry: dict[str, object],
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(io.BytesIO(_encoded_weights("torchvision", "resnet18", len(CLASSES))))
    torch.save(state | entry, "w.pth")
    assert main(["init", "x.yaml", "--weights", "w.pth", "--dataset", "pets", "--size", "64"]) == 0
    assert "order of the classes (eel, dog, cat, ...) is not that of the folders" in capsys.readouterr().out
    dataset = list_dataset(Path("pets"), val_label=load_build_file("x.yaml").dataset.val_label, class_count=5)
    assert [known.id for known in dataset.classes] == [*CLASSES[::-1]]


def test_init_writes_mean_and_std_of_a_layer_before_the_network(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(io.BytesIO(_encoded_weights("torchvision", "resnet18", len(CLASSES))))["state_dict"]
    layer = {"0.mean": torch.tensor([127.5, 102.0, 51.0]), "0.std": torch.full((3, 1, 1), 63.75)}
    torch.save(layer | {f"1.{name}": value for name, value in state.items()}, "w.pth")
    command = ["init", "--weights", "w.pth", "--dataset", "pets", "--size", "64"]
    assert main([*command, "x.yaml"]) == 0
    said = capsys.readouterr()
    assert "mean and std of a layer before the network, in the checkpoint" in said.out
    assert "must stand in process_ops (init writes them)" in said.err
    spec = load_build_file("x.yaml").preprocess
    assert (spec.mean, spec.std) == ((0.5, 0.4, 0.2), (0.25, 0.25, 0.25))
    assert main([*command, "y.yaml", "--mean", "0.1", "--std", "0.2"]) == 0
    spec = load_build_file("y.yaml").preprocess
    assert (spec.mean[0], spec.std[0]) == (0.1, 0.2)


def test_names_that_are_not_those_of_all_outputs_are_passed_over() -> None:
    assert find_class_names({"class_to_idx": {"a": 0, "b": 2}}) is None
    assert find_class_names({"classes": 5}) is None
    assert find_class_names([{"classes": ["a"]}]) is None
    endless: dict[str, object] = {"classes": 5}
    endless["meta"] = endless
    assert find_class_names(endless) is None


@pytest.mark.parametrize("within", [True, False])
def test_init_takes_the_order_of_the_classes_that_timm_wrote(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], within: bool
) -> None:
    """`label_names` as timm 1.0.31 writes them for the hub (save_for_hf), and as it reads them in `pretrained_cfg`."""
    monkeypatch.chdir(tmp_path)
    save_onnx(Path("net.onnx"))
    labels = {"label_names": [*CLASSES[::-1]]}
    record = {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"pretrained_cfg": record | labels} if within else {"pretrained_cfg": record} | labels
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "pets"]) == 0
    assert "order of the classes (eel, dog, cat, ...) is not that of the folders" in capsys.readouterr().out
    dataset = list_dataset(Path("pets"), val_label=load_build_file("x.yaml").dataset.val_label, class_count=5)
    assert [known.id for known in dataset.classes] == [*CLASSES[::-1]]


def test_init_takes_mean_and_std_from_flags(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_onnx(Path("net.onnx"))
    flags = ["--weights", "net.onnx", "--dataset", "pets"]
    assert main(["init", "x.yaml", *flags, "--mean", "0.1,0.2,0.3", "--std", "0.5"]) == 0
    assert "Resize 37, CenterCrop 32; mean and std as given" in capsys.readouterr().out
    cfg = load_build_file("x.yaml")
    assert (cfg.preprocess.mean, cfg.preprocess.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    for flag, text in (("--mean", "1,2"), ("--std", "0,1,1"), ("--mean", "123.7,116.3,103.5")):
        assert main(["init", "y.yaml", *flags, f"{flag}={text}"]) == 2
        assert f"{flag}: expected R,G,B of a 0..1 image, as 0.485,0.456,0.406, got '{text}'" in capsys.readouterr().err


@pytest.mark.slow
def test_init_takes_images_without_labels_to_calibrate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(f"some/{index}.png")
    save_onnx(Path("net.onnx"))
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "some"]) == 0
    assert (
        "6 png images without labels in some: enough to calibrate, not to measure accuracy" in capsys.readouterr().out
    )
    cfg = load_build_file("x.yaml")
    assert (cfg.frontend.num_classes, cfg.dataset.sampler.cover_classes) == (5, False)
    package = open_package(build(cfg, lambda line: None).prefix)
    assert len(package.classes()) == 5


def test_init_takes_an_input_that_is_not_square(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_onnx(Path("net.onnx"), 32, 48)
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "pets"]) == 0
    assert "net.onnx: input 'pixel_values', 32x48 px\nResize and CenterCrop [32, 48]" in capsys.readouterr().out
    assert load_build_file("x.yaml").preprocess.output_hw == (32, 48)
    assert main(["init", "y.yaml", "--weights", "net.onnx", "--dataset", "pets", "--size", "32"]) == 2
    assert "takes images of 32x48 px only, --size says 32; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--weights: missing; give it, or --model LIBRARY/NAME for published weights"),
        (["--weights", "w.pth"], "--dataset: missing; give it, or a config of PaddleClas by -c FILE"),
        (["--model", "timm/resnet18", "--evaluation", "pets"], "--evaluation: needs --dataset too"),
    ],
)
def test_init_names_the_flag_that_is_missing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["init", str(tmp_path / "x.yaml"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_init_of_a_name_alone_is_for_the_sample_and_with_images_for_the_published_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "sample.yaml", "--model", "timm/resnet18", "--size", "64"]) == 0
    assert "the build makes a sample of images and weights by itself" in capsys.readouterr().out
    cfg = load_build_file("sample.yaml")
    assert (cfg.uses_sample, cfg.frontend.model, cfg.frontend.chw) == (True, "resnet18", (3, 64, 64))
    assert main(["init", "own.yaml", "--model", "timm/resnet18", "--dataset", "pets"]) == 0
    assert load_build_file("own.yaml").frontend.checkpoint == AUTO


@pytest.mark.slow
def test_init_and_build_a_network_of_the_installed_library(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = timm.create_model("ghostnet_050", num_classes=len(CLASSES))
    network.train()
    with torch.no_grad():  # norms of random weights
        for _ in range(4):
            network(torch.randn(8, 3, 64, 64))
    torch.save({"state_dict": network.state_dict()}, "ghostnet_050-best.pth")
    assert main(["init", "x.yaml", "--weights", "ghostnet_050-best.pth", "--dataset", "pets", "--size", "64"]) == 0
    out = capsys.readouterr().out
    assert "ghostnet_050-best.pth fits timm/ghostnet_050, 5 classes" in out
    record = network.pretrained_cfg
    assert f"Resize 73 ({record['interpolation']}), CenterCrop 64, mean [0.485, 0.456, 0.406], " in out
    assert ": from timm's record of ghostnet_050, whose size is 224" in out
    package = open_package(build(load_build_file("x.yaml"), lambda line: None).prefix)
    assert package.report()["layers"]["quantized"] > 30
    assert package.report()["proof"]["given"]["verdict"] == "good"


def flat_images(images: Path, labels: Sequence[str]) -> Path:
    """Put the images into one folder with a table of Hugging Face's form; return the folder."""
    flat = images.with_name("flat")
    flat.mkdir()
    rows = ["file_name,label"]
    for index, image in enumerate(sorted(images.rglob("*.png"))):
        name = f"{index}.png"
        shutil.copy(image, flat / name)
        rows.append(f"{name},{labels[CLASSES.index(image.parent.name)]}")
    (flat / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    return flat


def test_init_takes_labels_from_a_table_beside_the_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flat = flat_images(images, CLASSES)
    assert main(["init", "x.yaml", "--weights", str(save_onnx(Path("net.onnx"))), "--dataset", "flat"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "20 png images of 5 classes in flat",
        f"labels of 20 images are column 'label' of {flat}/metadata.csv, classes in the order ant, bee, cat, ...: "
        "x.labels.txt",
    ]
    cfg = load_build_file("x.yaml")
    found = list_dataset(flat, val_label=cfg.dataset.val_label, class_count=5)
    assert [known.id for known in found.classes] == list(CLASSES)
    assert [sample.class_index for sample in found.samples if sample.name == "13"] == [3]


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (["1", "2", "3", "4", "5"], "column 'label' counts up to 5, and indices count from 0, but the network has 5"),
        (["ant", "ant", "cat", "dog", "eel"], "column 'label' holds 4 names, but the network has 5"),
    ],
)
def test_init_names_a_table_whose_labels_do_not_fit_the_network(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    labels: list[str],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    flat = flat_images(images, labels)
    assert main(["init", "x.yaml", "--weights", str(save_onnx(Path("net.onnx"))), "--dataset", "flat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "20 png images without labels in flat: enough to calibrate, not to measure accuracy"
    assert lines[1] == (
        f"{flat}/metadata.csv is not taken: {fault} classes; give one, lines 'name index', by --val_label"
    )
    assert not Path("x.labels.txt").exists()


def test_init_names_a_table_that_is_not_in_utf_8(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = flat_images(images, CLASSES) / "metadata.csv"
    table.write_bytes(table.read_text(encoding="utf-8").replace("bee", "b\u00e4r").encode("latin-1"))
    assert main(["init", "x.yaml", "--weights", str(save_onnx(Path("net.onnx"))), "--dataset", "flat"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        f"{table} is not taken: column 'label' is not all text in UTF-8; save the table as UTF-8; give one, lines "
        "'name index', by --val_label"
    )


def test_init_writes_a_list_of_names_that_are_not_in_utf_8(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flat = flat_images(images, [str(index) for index in range(5)])
    (flat / "7.png").rename(flat / os.fsdecode(b"b\xe4r.png"))
    table = flat / "metadata.csv"
    table.write_bytes(table.read_bytes().replace(b"\n7.png", b"\nb\xe4r.png"))
    assert main(["init", "x.yaml", "--weights", str(save_onnx(Path("net.onnx"))), "--dataset", "flat"]) == 0
    found = list_dataset(flat, val_label=load_build_file("x.yaml").dataset.val_label, class_count=5)
    assert {sample.name: sample.class_index for sample in found.samples}[os.fsdecode(b"b\xe4r")] == 1


def test_init_says_that_labels_of_webdataset_are_not_read(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with tarfile.open("shard.tar", "w") as archive:
        for index, image in enumerate(sorted(images.rglob("*.png"))):
            archive.add(image, f"{index:03}.png")
            archive.addfile(tarfile.TarInfo(f"{index:03}.cls"), io.BytesIO())
    assert main(["init", "x.yaml", "--weights", str(save_onnx(Path("net.onnx"))), "--dataset", "shard.tar"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "000.cls and 19 others like it are labels of webdataset, which are not read; give a list, lines 'name index', "
        "by --val_label"
    )


def with_outputs(path: Path, *extra: tuple[str, int]) -> None:
    """Add outputs [N, count] before the scores of a file, of which none is read by another operator."""
    model = onnx.load(path)
    for name, count in extra:
        pooled = onnx.helper.make_node("GlobalAveragePool", ["pixel_values"], [f"{name}_map"], f"{name}_pool")
        flat = onnx.helper.make_node("Flatten", [f"{name}_map"], [f"{name}_flat"], f"{name}_flat")
        weight = onnx.numpy_helper.from_array(np.ones((3, count), np.float32), f"{name}_weight")
        model.graph.initializer.append(weight)
        model.graph.node.extend([pooled, flat, onnx.helper.make_node("MatMul", [f"{name}_flat", weight.name], [name])])
        model.graph.output.insert(0, onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", count]))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([("features", 7)], "of 2 outputs 'output' is taken (frontend.output)"),
        (
            [("teacher", 5), ("aux", 5)],
            "of 3 outputs 'output' is taken (frontend.output); where the scores are 'teacher', set it to that",
        ),
    ],
)
def test_init_names_the_output_with_as_many_scores_as_the_images_have_classes(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: list[tuple[str, int]],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with_outputs(save_onnx(Path("net.onnx")), *extra)
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "pets"]) == 0
    assert f"net.onnx: input 'pixel_values', 32 px; {said}\n" in capsys.readouterr().out
    assert load_build_file("x.yaml").frontend.output == "output"
    assert main(["build", "x.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_init_takes_labels_of_evaluation_images_from_a_table(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], labelled: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    flat = flat_images(images, CLASSES)
    if not labelled:
        shutil.copytree(flat, "plain")
        Path("plain/metadata.csv").unlink()
    arguments = ["--dataset", "pets" if labelled else "plain", "--evaluation", "flat"]
    assert main(["init", "x.yaml", "--weights", str(save_onnx(Path("net.onnx"))), *arguments]) == 0
    assert (
        f"labels of 20 images are column 'label' of {flat}/metadata.csv, classes in the order ant, bee, cat, ...: "
        "x.evaluation.txt\n" in capsys.readouterr().out
    )
    cfg = load_build_file("x.yaml")
    assert cfg.dataset.val_label is None
    found = list_dataset(flat, val_label=cfg.evaluation.val_label, class_ids=CLASSES)
    assert [sample.class_index for sample in found.samples if sample.name == "13"] == [3]


def test_init_names_a_class_of_an_evaluation_table_that_the_images_do_not_have(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flat = flat_images(images, ["ant", "bee", "cow", "dog", "eel"])
    arguments = ["--dataset", "pets", "--evaluation", "flat"]
    assert main(["init", "x.yaml", "--weights", str(save_onnx(Path("net.onnx"))), *arguments]) == 0
    assert (
        f"{flat}/metadata.csv is not taken: column 'label' names 'cow', which no class of the images is; give one, "
        "lines 'name index', by --set evaluation.val_label=FILE of build\n" in capsys.readouterr().out
    )
    assert load_build_file("x.yaml").evaluation.val_label is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT])
def test_init_and_build_a_network_of_pixels(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: int
) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.load(save_onnx(Path("net.onnx")))
    model.graph.input[0].type.tensor_type.elem_type = kind
    scaled = [
        onnx.helper.make_node("Cast", ["pixel_values"], ["cast"], "cast", to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Div", ["cast", "scale"], ["scaled"], "scale"),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(255), "scale"))
    for node in model.graph.node:
        node.input[:] = ["scaled" if name == "pixel_values" else name for name in node.input]
    for node in reversed(scaled):
        model.graph.node.insert(0, node)
    onnx.save(model, "net.onnx")
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "pets"]) == 0
    assert "32 px, pixels of 0 to 255 that the network normalises itself" in capsys.readouterr().out
    cfg = load_build_file("x.yaml")
    package = open_package(build(cfg, lambda line: None).prefix)
    assert package.report()["proof"]["given"]["verdict"] == "good"
    text = Path("x.yaml").read_text(encoding="utf-8").replace("div255: false", "div255: true")
    Path("y.yaml").write_text(text, encoding="utf-8")
    assert main(["build", "y.yaml"]) == 2
    does = (
        "its input is uint8: the network casts and normalises"
        if kind == onnx.TensorProto.UINT8
        else "the network normalises"
    )
    assert f"net.onnx: {does} its pixels itself, and process_ops normalise them too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mean", "std", "written", "said"),
    [
        (123.7, 58.4, {"mean": [0.0] * 3, "std": [1.0] * 3, "div255": False}, "pixels of 0 to 255"),
        (0.485, 0.229, {"mean": [0.0] * 3, "std": [1.0] * 3}, "images of 0 to 1"),
    ],
)
def test_init_leaves_a_normalisation_to_the_network_that_begins_with_it(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mean: float,
    std: float,
    written: dict[str, object],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.load(save_onnx(Path("net.onnx")))
    for node in model.graph.node:
        node.input[:] = ["normal" if name == "pixel_values" else name for name in node.input]
    for name, value in (("mean", mean), ("std", std)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((3, 1, 1), value, np.float32), name))
    model.graph.node.insert(0, onnx.helper.make_node("Div", ["above", "std"], ["normal"], "div"))
    model.graph.node.insert(0, onnx.helper.make_node("Sub", ["pixel_values", "mean"], ["above"], "sub"))
    onnx.save(model, "net.onnx")
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "pets"]) == 0
    out = capsys.readouterr().out
    assert f"32 px, {said} that the network normalises itself" in out
    assert "CenterCrop 32; mean and std are in the network" in out
    ops = yaml.safe_load(Path("x.yaml").read_text(encoding="utf-8"))["dataset"]["process_ops"]
    assert next(op for op in ops if op["type"] == "Normalize") == {"type": "Normalize", **written}
    given = ["--mean", ".5,.5,.5", "--std", ".5,.5,.5"]
    assert main(["init", "y.yaml", "--weights", "net.onnx", "--dataset", "pets", *given]) == 0
    assert "CenterCrop 32; mean and std as given" in capsys.readouterr().out
    code = main(["build", "y.yaml", "--dry-run"])
    found = capsys.readouterr().err
    if said.startswith("pixels"):
        assert code == 2
        assert "net.onnx: the network normalises its pixels itself, and process_ops normalise them too" in found
    else:
        assert code == 0
        assert "net.onnx: the network begins with a normalisation of images of 0 to 1, and process_ops nor" in found


def test_init_asks_for_a_split_where_several_hold_the_class_folders(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_onnx(Path("net.onnx"))
    for split in ("train", "val"):
        shutil.copytree(images, Path("data") / split)
    root = Path("data").absolute()
    for flags in (["--dataset", "data"], ["--dataset", "data/train", "--evaluation", "data"]):
        assert main(["init", "x.yaml", "--weights", "net.onnx", *flags]) == 2
        told = f"error: {root}: holds train and val; give one of them: {root}/train or {root}/val\n"
        assert capsys.readouterr().err == told
    assert not Path("x.yaml").exists()


def test_init_says_where_classes_are_a_folder_further_up(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Tiny ImageNet has them: train/n01443537/images/*.JPEG."""
    monkeypatch.chdir(tmp_path)
    save_onnx(Path("net.onnx"))
    for name in CLASSES:
        shutil.copytree(images / name, Path("data") / name / "images")
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "data"]) == 0
    out = capsys.readouterr().out
    assert "21 images (20 png, 1 JPEG) without labels in data: enough to calibrate, not to measure accuracy" in out
    assert "all lie in folders 'images': where those above are the classes, move the images up into them" in out


def save_ultralytics(path: Path, task: str = "classify") -> None:
    """A file with the entries that its exporter writes, their values in Python's notation."""
    model = onnx.load(save_onnx(path))
    names = dict(enumerate(reversed(CLASSES)))
    entries = {"author": "Ultralytics", "task": task, "imgsz": "[32, 32]", "names": str(names), "stride": "1"}
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, path)


def test_init_takes_size_range_and_order_of_classes_from_the_metadata_of_an_onnx_file(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_ultralytics(Path("best.onnx"))
    assert main(["init", "x.yaml", "--weights", "best.onnx", "--dataset", "pets"]) == 0
    out = capsys.readouterr().out
    assert (
        "Resize 32 (bilinear), CenterCrop 32, mean [0, 0, 0], std [1, 1, 1]: from Ultralytics' metadata in best" in out
    )
    spec = load_build_file("x.yaml").preprocess
    assert (spec.mean, spec.std, spec.resize_hw, spec.crop_hw) == ((0, 0, 0), (1, 1, 1), (32, 32), (32, 32))
    assert "the model's own order of the classes (eel, dog, cat, ...) is not that of the folders" in out
    assert "eel/0.png 0\n" in Path("x.labels.txt").read_text(encoding="utf-8")


def test_init_takes_the_order_of_classes_from_the_labels_that_a_zip_map_puts_scores_under(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.load(save_onnx(Path("net.onnx")))
    row = onnx.helper.make_map_type_proto(
        onnx.TensorProto.STRING, onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    )
    zip_map = onnx.helper.make_node("ZipMap", [model.graph.output[0].name], ["named"], domain="ai.onnx.ml")
    zip_map.attribute.append(onnx.helper.make_attribute("classlabels_strings", CLASSES[::-1]))
    model.graph.node.append(zip_map)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_value_info("named", onnx.helper.make_sequence_type_proto(row)))
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, "net.onnx")
    given = ["--mean", "0,0,0", "--std", "1,1,1"]
    assert main(["init", "x.yaml", "--weights", "net.onnx", "--dataset", "pets", *given]) == 0
    out = capsys.readouterr().out
    assert "the model's own order of the classes (eel, dog, cat, ...) is not that of the folders" in out
    assert "eel/0.png 0\n" in Path("x.labels.txt").read_text(encoding="utf-8")


def test_init_refuses_a_network_whose_metadata_name_another_task(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_ultralytics(Path("best.onnx"), "detect")
    assert main(["init", "x.yaml", "--weights", "best.onnx", "--dataset", "pets"]) == 2
    assert "best.onnx: is Ultralytics' network for the task 'detect'; wanted one for 'clas" in capsys.readouterr().err
