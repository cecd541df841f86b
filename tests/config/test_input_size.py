"""input_size.py: the preprocessing follows the size that a flag gives the network's input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.build_file import load_build_file
from pipeline.config.input_size import process_ops_of
from pipeline.config.vdsp import ColourOrder, NormType, PreprocessSpec, ResizeMode
from pipeline.errors import ConfigError

BASE = PreprocessSpec(
    resize=ResizeMode.SHORTER_SIDE,
    resize_hw=(256, 256),
    crop_hw=(224, 224),
    crop_yx=None,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    synthetic_hw=(256, 256),
)
STRETCH = replace(BASE, resize=ResizeMode.STRETCH, crop_yx=(16, 16))


def test_size_scales_resize_with_crop_when_the_shipped_file_has_both() -> None:
    cfg = load_build_file("timm_wideres.yaml", extra={"frontend.shape": 224})
    assert cfg.frontend.shape == (1, 3, 224, 224)
    assert (cfg.preprocess.resize_hw, cfg.preprocess.crop_hw) == ((224, 224), (224, 224))
    assert cfg.package_name == "wide_resnet50_2-int8-percentile-3_224_224-vacc"
    cfg = load_build_file("torchvision_resnet18.yaml", extra={"frontend.shape": 256})
    assert (cfg.preprocess.resize_hw, cfg.preprocess.crop_hw) == ((293, 293), (256, 256))  # 256 * 256 / 224 = 292.6
    assert cfg.preprocess.filter == load_build_file("torchvision_resnet18.yaml").preprocess.filter
    assert cfg.notices == (
        "--size 256: Resize 293, CenterCrop 256; torchvision-resnet18-vdsp_params.json is taken but for its sizes",
    )


def test_sized_file_loads_again_as_it_is_shown(tmp_path: Path) -> None:
    cfg = load_build_file("timm_wideres.yaml", extra={"frontend.shape": 224})
    values = {key: value for key, value in cfg.as_dict().items() if key != "preprocess"}
    (tmp_path / "again.yaml").write_text(json.dumps(values), encoding="utf-8")
    again = load_build_file(tmp_path / "again.yaml")
    assert again.preprocess == cfg.preprocess
    assert again.as_dict() == cfg.as_dict()


def test_size_replaces_a_shape_that_the_preprocessing_does_not_make(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"H, W are \[224, 224\], but the preprocessing makes \[256, 256\]"):
        load_build_file("timm_wideres.yaml", ["frontend.shape={input: [1, 3, 224, 224]}"])
    cfg = load_build_file("timm_wideres.yaml", ["frontend.shape={x: [-1, 3, 224, 224]}"], extra={"frontend.shape": 96})
    assert (cfg.frontend.input_name, cfg.frontend.shape, cfg.preprocess.crop_hw) == ("x", (-1, 3, 96, 96), (96, 96))


@pytest.mark.parametrize("side", [0, 16385, "big", True, 1.5])
def test_size_is_refused_by_its_flag_when_no_input_has_it(side: object) -> None:
    with pytest.raises(ConfigError, match=r"^--size: must be in 1\.\.16384, got "):
        load_build_file("timm_wideres.yaml", extra={"frontend.shape": side})


@pytest.mark.parametrize(
    "spec",
    [
        BASE,
        STRETCH,
        replace(BASE, resize=ResizeMode.NONE, resize_hw=None, synthetic_hw=(224, 224)),
        replace(BASE, colour=ColourOrder.BGR),
        replace(BASE, norm=NormType.DIV255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        replace(STRETCH, resize_hw=(300, 256), crop_yx=(38, 16), synthetic_hw=(300, 256)),
        replace(BASE, norm=NormType.MINUSMEAN_DIVSTD, mean=(123.675 / 255, 116.28 / 255, 103.53 / 255)),
    ],
)
def test_process_ops_are_read_as_the_spec_they_were_made_of(spec: PreprocessSpec, tmp_path: Path) -> None:
    document = {
        "name": "x",
        "frontend": {"type": "onnx", "shape": {"input": [1, 3, 224, 224]}},
        "dataset": {"process_ops": list(process_ops_of(spec))},
    }
    (tmp_path / "x.yaml").write_text(json.dumps(document), encoding="utf-8")
    found = load_build_file(tmp_path / "x.yaml").preprocess
    assert (found.resize, found.resize_hw, found.crop_hw, found.crop_yx) == (
        spec.resize,
        spec.resize_hw,
        spec.crop_hw,
        spec.crop_yx,
    )
    assert (found.colour, found.norm) == (spec.colour, spec.norm)
    assert found.mean == pytest.approx(spec.mean)
    assert found.std == pytest.approx(spec.std)
