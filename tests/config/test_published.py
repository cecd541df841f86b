"""Records of published checkpoints: against the libraries that publish them, and where a build takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.build_file import load_build_file
from pipeline.config.choices import PreprocessAs
from pipeline.config.published import recorded_preprocess
from pipeline.config.spec_comparison import difference
from pipeline.config.vdsp import PreprocessSpec, ResizeFilter
from pipeline.errors import ConfigError
from pipeline.models.zoo import MODELS

PILLOW = {"bilinear": ResizeFilter.BILINEAR_PILLOW, "bicubic": ResizeFilter.BICUBIC_PILLOW}
TEXT = """\
name: net
frontend: {type: timm, model: resnet50, shape: {input: [1, 3, 224, 224]}}
"""


def described(spec: PreprocessSpec) -> tuple[object, ...]:
    return spec.resize_hw, spec.crop_hw, spec.filter, spec.mean, spec.std


def test_every_checkpoint_that_auto_fetches_has_a_record() -> None:
    assert [row.name for row in MODELS if row.sha256 and recorded_preprocess(row.library, row.name) is None] == []
    assert recorded_preprocess("paddleclas", "ResNet50") is None
    assert recorded_preprocess("onnx", None) is None


@pytest.mark.slow
def test_records_are_those_of_timm() -> None:
    pytest.importorskip("timm", reason="compares with timm's own records")
    from timm.models import resnet

    found = {}
    for architecture in resnet.default_cfgs.values():
        for record in architecture.cfgs.values():
            found[(record.url or "").rpartition("/")[2]] = record
    rows = [row for row in MODELS if row.library == "timm" and row.sha256 and row.name != "resnet18"]
    assert len(rows) == 7
    for row in rows:
        record, ours = found[(row.url or "").rpartition("/")[2]], recorded_preprocess("timm", row.name)
        assert ours is not None
        size = int(record.input_size[1] / record.crop_pct)
        shown = (size, size), record.input_size[1:], PILLOW[record.interpolation], record.mean, record.std
        assert described(ours) == shown, row.name


@pytest.mark.slow
def test_records_are_those_of_torchvision() -> None:
    models = pytest.importorskip("torchvision.models", reason="compares with torchvision's own records")
    for row in MODELS:
        ours = recorded_preprocess("torchvision", row.name) if row.library == "torchvision" else None
        if ours is None:
            continue
        weights = models.get_model_weights(row.name).IMAGENET1K_V1
        transforms = weights.transforms()
        assert weights.url == row.url
        size, crop = transforms.resize_size[0], transforms.crop_size[0]
        shown = (size, size), (crop, crop), PILLOW[transforms.interpolation.value]
        assert described(ours) == (*shown, tuple(transforms.mean), tuple(transforms.std)), row.name


def test_load_build_file_takes_the_record_when_auto_has_no_other_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(TEXT, encoding="utf-8")
    cfg = load_build_file(path, extra={"frontend.checkpoint": "auto"})
    assert cfg.preprocess == recorded_preprocess("timm", "resnet50")
    assert cfg.notices == (
        "preprocessing as recorded with the published checkpoint: Resize 235 BICUBIC_PILLOW, CenterCrop 224",
    )
    with pytest.raises(ConfigError, match="missing, and vdsp_params too"):
        load_build_file(path, extra={"frontend.checkpoint": "net.pth"})


def test_load_build_file_keeps_the_documents_preprocessing_when_the_checkpoint_is_auto() -> None:
    kept = load_build_file("timm_resnet50.yaml", extra={"frontend.checkpoint": "auto"}).preprocess
    assert kept == load_build_file("timm_resnet50.yaml").preprocess
    recorded = recorded_preprocess("timm", "resnet50")
    assert recorded is not None
    assert difference(kept, recorded) == "resize is SHORTER_SIDE 256 against SHORTER_SIDE 235"
    taken = load_build_file(
        "timm_resnet50.yaml",
        ["dataset.process_ops=null", "dataset.vdsp_params=null"],
        extra={"frontend.checkpoint": "auto"},
    )
    assert taken.preprocess == recorded
    assert taken.dataset.preprocess_as is PreprocessAs.TORCHVISION
