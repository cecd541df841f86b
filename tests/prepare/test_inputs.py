"""inputs.py: what a build and a dry run find before any work."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import building
from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.config.sections import AUTO
from pipeline.errors import DataError, PipelineError
from pipeline.models import zoo
from pipeline.prepare import inputs

MakeConfig = Callable[..., BuildConfig]
CLASSES = 4  # of `image_tree`, with six images each


@pytest.fixture
def resnet18(tmp_path: Path, image_tree: Path) -> Callable[..., BuildConfig]:
    """Return a function that writes a build file of resnet18 with 4 classes at 32 px, and loads it."""
    document = {
        "name": "r18",
        "frontend": {"type": "timm", "model": "resnet18", "checkpoint": "w.pth", "shape": {"input": [1, 3, 32, 32]}},
        "dataset": {
            "path": str(image_tree),
            "sampler": {"get_data_num": 8},
            "process_ops": [{"type": "Resize", "size": 32}, {"type": "CenterCrop", "crop_size": 32}],
        },
        "workspace": {"path": str(tmp_path / "deploy")},
    }

    def load(checkpoint: Path | str, *overrides: str) -> BuildConfig:
        (tmp_path / "r18.yaml").write_text(json.dumps(document), encoding="utf-8")
        return load_build_file(tmp_path / "r18.yaml", overrides, extra={"frontend.checkpoint": str(checkpoint)})

    return load


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "w.pth"
    torch.save(zoo.build_network(zoo.find_model("timm", "resnet18"), CLASSES).state_dict(), path)
    return path


@pytest.mark.parametrize(("wanted", "taken"), [(1, 4), (3, 4), (4, 4), (5, 5), (24, 24)])
def test_settle_images_takes_one_a_class_when_fewer_are_asked_for(
    make_config: MakeConfig, wanted: int, taken: int
) -> None:
    cfg = inputs.settle_images(make_config(f"dataset.sampler.get_data_num={wanted}"))
    assert cfg.dataset.sampler.get_data_num == taken
    raised = (
        f"dataset.sampler.get_data_num: {taken} calibration images in place of {wanted}, one for each class; with "
        f"dataset.sampler.cover_classes=false it is {wanted}"
    )
    assert cfg.notices == ((raised,) if wanted < taken else ())


def test_settle_images_keeps_the_number_when_classes_need_no_image(make_config: MakeConfig) -> None:
    for more in ("dataset.sampler.cover_classes=false", "backend.dtype=fp32"):
        cfg = make_config("dataset.sampler.get_data_num=2", more)
        assert inputs.settle_images(cfg) == cfg


def test_settle_images_names_the_classes_when_some_have_no_image(make_config: MakeConfig, image_tree: Path) -> None:
    first = sorted(image_tree.iterdir())[0]
    for image in first.iterdir():
        image.unlink()
    with pytest.raises(DataError, match=rf"1 of 4 classes have no image: {first.name}; add images of them, remove "):
        inputs.settle_images(make_config())


def test_settle_images_names_the_flag_when_there_are_fewer_than_wanted(make_config: MakeConfig) -> None:
    with pytest.raises(DataError, match=r"holds 24 images, dataset\.sampler\.get_data_num asks for 25; ask for 24"):
        inputs.settle_images(make_config("dataset.sampler.get_data_num=25"))


@pytest.mark.slow
def test_build_calibrates_on_one_image_a_class_when_the_file_asks_for_fewer(make_config: MakeConfig) -> None:
    said: list[str] = []
    cfg = make_config("dataset.sampler.get_data_num=2", "backend.quantize.weight_rounding=nearest")
    built = building.build(cfg, said.append)
    assert said[0].startswith("note: dataset.sampler.get_data_num: 4 calibration images in place of 2")
    lines = (built.stages["calibset"] / "calibration.txt").read_text(encoding="utf-8").splitlines()
    assert len({line.split()[-1] for line in lines if not line.startswith("#")}) == CLASSES
    assert building.build(cfg).ran == ()  # the second build finds it done


def test_dry_run_shows_the_number_that_is_taken(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    assert main(["build", str(tmp_path / "tiny.yaml"), "--dry-run", "--num_images", "3"]) == 0
    out = capsys.readouterr().out
    assert "note: dataset.sampler.get_data_num: 4 calibration images in place of 3" in out
    assert "get_data_num: 4" in out


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_build_finds_another_input_size_before_any_work(
    make_config: MakeConfig, tmp_path: Path, dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_config()
    code = main(["build", str(tmp_path / "tiny.yaml"), "--size", "48", "--output", str(tmp_path / "out"), *dry])
    assert code == 2
    found = capsys.readouterr()
    assert found.err.endswith("set frontend.shape and process_ops to the model's size (--size 32 of build does it)\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "other network", "other classes", "text"])
@pytest.mark.parametrize("way", [building.plan, building.build])
def test_build_and_plan_refuse_weights_that_do_not_fit_before_any_work(
    resnet18: Callable[..., BuildConfig], weights: Path, way: Callable[[BuildConfig], object], damage: str
) -> None:
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:50000])
            message = r"w\.pth: not a whole checkpoint \(it is cut off or damaged\); copy or download it again"
        case "text":
            weights.write_text("<html>no weights</html>")
            message = r"w\.pth.*"
        case "other network":
            torch.save(zoo.build_network(zoo.find_model("timm", "resnet34"), CLASSES).state_dict(), weights)
            message = r"w\.pth: not a checkpoint of timm resnet18: .* unexpected .*; it fits .*timm resnet34"
        case _:
            torch.save(zoo.build_network(zoo.find_model("timm", "resnet18"), 7).state_dict(), weights)
            message = r"w\.pth: has 7 classes, wanted 4"
    cfg = resnet18(weights)
    with pytest.raises(PipelineError, match=message):
        way(cfg)
    assert not cfg.workspace.path.exists()


def test_plan_passes_when_the_weights_fit(resnet18: Callable[..., BuildConfig], weights: Path) -> None:
    lines = building.plan(resnet18(weights))
    assert lines[0] == f"[1/{len(lines) - 1}] calibset: runs"


def test_what_a_checkpoint_holds_beside_tensors_is_left_to_the_export_to_say(
    resnet18: Callable[..., BuildConfig], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": torch.load(weights), "args": argparse.Namespace(lr=1)}, weights)
    inputs.check_weights(resnet18(weights))
    assert capsys.readouterr().err == ""


def test_check_weights_leaves_published_and_sample_weights_alone(
    resnet18: Callable[..., BuildConfig], weights: Path
) -> None:
    cfg = resnet18(weights)
    for checkpoint in (AUTO, None):
        inputs.check_weights(
            dataclasses.replace(cfg, frontend=dataclasses.replace(cfg.frontend, checkpoint=checkpoint))
        )


def test_check_names_the_flag_that_gave_the_weights(
    resnet18: Callable[..., BuildConfig], tiny_onnx: Path, tmp_path: Path
) -> None:
    whole = shutil.copy(tiny_onnx, tmp_path / "whole.onnx")
    with pytest.raises(PipelineError, match=r"^--weights: .*whole\.onnx is a whole model"):
        building.check(resnet18(whole))


@pytest.fixture
def of_tiny(tiny_onnx: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build file of an ONNX file, `whole.onnx`, both in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_onnx, "whole.onnx")
    Path("n.yaml").write_text(
        f"""name: n
frontend: {{type: onnx, checkpoint: whole.onnx, shape: {{input: [1, 3, 32, 32]}}}}
dataset:
  path: {image_tree}
  process_ops: [{{type: Resize, size: 32}}, {{type: CenterCrop, crop_size: 32}}]
""",
        encoding="utf-8",
    )
    return Path("n.yaml")


def test_check_names_what_a_build_file_names_and_is_not_there(
    of_tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "n.yaml"]) == 0
    assert capsys.readouterr().out == "n.yaml: ok\n"
    text = of_tiny.read_text(encoding="utf-8").replace("whole.onnx", "gone.onnx").replace("path: ", "path: gone")
    of_tiny.write_text(text, encoding="utf-8")
    assert main(["check", "n.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: n.yaml:2 frontend.checkpoint: gone.onnx: no such file")
    assert "n.yaml:4 dataset.path: gone" in lines[1]
    assert main(["check", "--keys", "n.yaml"]) == 0


def test_check_says_where_the_input_has_another_name_than_the_build_file_gives(
    of_tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = of_tiny.read_text(encoding="utf-8").replace("{input: [", "{images: [")
    of_tiny.write_text(text, encoding="utf-8")
    assert main(["check", "n.yaml"]) == 0
    assert capsys.readouterr().err == (
        "note: frontend.shape: the input of whole.onnx is 'input', not 'images'; it has no other, so it is taken\n"
    )
