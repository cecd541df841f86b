"""Which checkpoint the export stage takes, `auto` among them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from pipeline import building
from pipeline.config.build_file import load_build_file
from pipeline.config.choices import Frontend
from pipeline.config.sections import AUTO, FrontendConfig
from pipeline.errors import ConfigError, DataError
from pipeline.host import user_cache
from pipeline.models import exporter, zoo
from pipeline.prepare import frontends
from pipeline.prepare.export_model import Source, export_model
from pipeline.stages import export
from pipeline.stages.settings import settings_key
from pipeline.weights import published


def frontend(kind: Frontend, model: str | None, checkpoint: Path | None) -> FrontendConfig:
    return FrontendConfig(type=kind, model=model, checkpoint=checkpoint, shape=(1, 3, 32, 32))


def error_of(config: FrontendConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        frontends.check(config)
    return str(caught.value)


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net"])
def test_check_says_so_when_a_model_is_given_for_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    onnx.save(exporter.to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)), path)
    assert error_of(frontend(Frontend.TIMM, "resnet18", path)) == (
        f"frontend.checkpoint: {path} is a whole model, a frontend of type timm expects weights only; set "
        "frontend.type to onnx, or give another file"
    )


@pytest.mark.parametrize("name", ["w.pth", "w.onnx", "w"])
def test_check_says_so_when_weights_are_given_for_a_model(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"a": torch.ones(1)}, path)
    assert error_of(frontend(Frontend.ONNX, None, path)) == (
        f"frontend.checkpoint: {path} holds only weights, a frontend of type onnx expects a whole model; set "
        "frontend.type and frontend.model to the network's, or give an .onnx file"
    )


@pytest.mark.parametrize("kind", [Frontend.ONNX, Frontend.TIMM])
def test_check_names_a_git_lfs_pointer(tmp_path: Path, kind: Frontend) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert error_of(frontend(kind, "resnet18", path)) == (
        f"frontend.checkpoint: {path}: is a Git LFS pointer, the file itself is not here; run git lfs pull in its "
        "repository"
    )


def test_check_says_so_when_auto_has_no_network() -> None:
    assert error_of(frontend(Frontend.ONNX, None, AUTO)) == (
        "frontend.checkpoint: auto, but a frontend of type onnx has no published file; give one"
    )


def test_check_says_so_when_auto_has_no_hash() -> None:
    assert "has no published sha256" in error_of(frontend(Frontend.PADDLECLAS, "ResNet50", AUTO))
    assert "no published checkpoint" in error_of(frontend(Frontend.OFFICIAL, "iresnet18", AUTO))


def test_check_accepts_auto_where_the_table_has_an_address() -> None:
    frontends.check(frontend(Frontend.TIMM, "resnet18", AUTO))


def test_build_check_refuses_auto_with_sample_images(tmp_path: Path) -> None:
    cfg = load_build_file("timm_wideres.yaml", extra={"frontend.checkpoint": "auto"})
    assert not cfg.uses_sample
    with pytest.raises(ConfigError, match="real weights cannot be calibrated on sample images; give --dataset DIR"):
        building.check(cfg)
    building.check(
        load_build_file("timm_wideres.yaml", extra={"frontend.checkpoint": "auto", "dataset.path": str(tmp_path)})
    )


def test_key_of_auto_is_that_of_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    row = dataclasses.replace(
        zoo.find_model("timm", "wide_resnet50_2"),
        url="https://127.0.0.1/net.pth",
        sha256=hashlib.sha256(content).hexdigest()[:8],
    )
    monkeypatch.setattr(zoo, "find_model", lambda library, name: row)
    monkeypatch.setenv(user_cache.FOLDER_VARIABLE, str(tmp_path))
    cached = tmp_path / "timm" / "net.pth"
    cached.parent.mkdir()
    cached.write_bytes(content)
    by_name, by_path, other = (
        load_build_file("timm_wideres.yaml", extra={"frontend.checkpoint": str(path)})
        for path in (AUTO, cached, tmp_path / "other.pth")
    )
    (tmp_path / "other.pth").write_bytes(b"other")
    keys = [
        settings_key(export.take_settings(cfg))
        for cfg in (frontends.fetch_weights(by_name), by_path, frontends.fetch_weights(other))
    ]
    assert keys[0] == keys[1] != keys[2]
    assert by_name.as_dict() == frontends.fetch_weights(by_name).as_dict()  # the package says auto, not where it lay


def test_build_fetches_before_any_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(row: zoo.Model, where: str) -> Path:
        raise DataError(f"{where}: {row.library} {row.name} cannot be reached")

    monkeypatch.setattr(published, "fetch", fail)
    workspace = tmp_path / "deploy_weights"
    flags = {"frontend.checkpoint": "auto", "dataset.path": str(tmp_path), "workspace.path": str(workspace)}
    flags["backend.dtype"] = "fp32"  # which needs no images
    said: list[str] = []
    with pytest.raises(DataError, match=r"frontend\.checkpoint: timm wide_resnet50_2 cannot be reached"):
        building.build(load_build_file("timm_wideres.yaml", extra=flags), said.append)
    assert said == []
    assert not workspace.exists()


def test_export_model_names_its_flag_when_auto_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--pretrained_weights: auto, but https://"):
        export_model(Source(library="paddleclas", name="ResNet50", size=64, weights=AUTO), tmp_path)


def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, *overrides: str) -> list[str]:
    """Return what the stage says of the preprocessing of a build with the published checkpoint, by its digest."""
    path = tmp_path / "published.pth"
    path.write_bytes(b"weights")
    cfg = load_build_file(config, overrides, extra={"frontend.checkpoint": str(path)})
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    row = dataclasses.replace(zoo.find_model(cfg.frontend.type.value, cfg.frontend.model or ""), sha256=digest)
    monkeypatch.setattr(zoo, "find_model", lambda library, name: row)
    return export._disagreement(export.take_settings(cfg))


def test_run_says_both_when_build_and_published_checkpoint_prepare_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert noted(tmp_path, monkeypatch, "timm_resnet50.yaml") == [
        "preprocessing: Resize 256 BILINEAR_PILLOW, CenterCrop 224 in this build, Resize 235 BICUBIC_PILLOW, "
        "CenterCrop 224 as recorded with the published checkpoint (resize is SHORTER_SIDE 256 against SHORTER_SIDE "
        "235); --weights auto --set dataset.process_ops=null --set dataset.vdsp_params=null takes the latter"
    ]


def test_run_says_the_size_too_when_that_of_the_record_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = noted(tmp_path, monkeypatch, "timm_wideres.yaml")
    assert line.endswith("=null --set 'frontend.shape={input: [1, 3, 224, 224]}' takes the latter")


def test_run_says_nothing_of_the_preprocessing_when_it_is_as_recorded_or_the_checkpoint_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert noted(tmp_path, monkeypatch, "torchvision_resnet50.yaml") == []
    monkeypatch.undo()
    other = load_build_file("timm_resnet50.yaml", extra={"frontend.checkpoint": str(tmp_path / "published.pth")})
    assert export._disagreement(export.take_settings(other)) == []
