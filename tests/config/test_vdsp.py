"""vdsp.py: what a vdsp_params file means, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spec_fixtures import SHORTER, SPEC

from pipeline.config.choices import PreprocessAs
from pipeline.config.vdsp import (
    ColourOrder,
    NormType,
    PreprocessSpec,
    ResizeFilter,
    ResizeMode,
    centre_offset,
    load_vdsp,
    spec_from_vdsp_dict,
    to_vdsp_dict,
)
from pipeline.errors import ConfigError

REPO = Path(__file__).resolve().parents[2]
VENDOR = REPO.parent / "shared" / "vendor"
SHIPPED = sorted((REPO / "vdsp_params").glob("*"))
VENDOR_FILES = sorted(VENDOR.glob("*vdsp_params.json"))

VALUES: dict[str, Any] = {
    "OpType": "FUSION_OP_RGB_RESIZE_CVTCOLOR_CROP_NORM_TENSOR",
    "OpConfig": {
        "IimageFormat": "RGB_PLANAR",
        "IimageWidth": 300,
        "IimageHeight": 280,
        "OimageWidth": 200,
        "OimageHeight": 224,
        "CropX": 28,
        "CropY": 10,
        "ResizeWidth": 256,
        "ResizeHeight": 240,
        "IimageWidthPitch": 300,
        "IimageHeightPitch": 280,
        "Mean": [0.485, 0.456, 0.406],
        "Std": [0.229, 0.224, 0.225],
        "NormaType": "DIV255_MINUSMEAN_DIVSTD",
        "ColorCvtCode": "NO_CHANGE",
        "ResizeType": "BILINEAR_CV",
    },
}


def changed(**config: object) -> dict[str, Any]:
    """VALUES with keys of OpConfig replaced; None removes one."""
    values = copy.deepcopy(VALUES)
    values["OpConfig"].update(config)
    values["OpConfig"] = {key: value for key, value in values["OpConfig"].items() if value is not None}
    return values


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_load_vdsp_loads_when_file_is_shipped(path: Path) -> None:
    spec = load_vdsp(path.name)
    assert spec == load_vdsp(path)
    # As each library measured: torchvision by Pillow's bilinear filter, timm's resnet50c and d by its bicubic one,
    # PaddleClas by OpenCV.
    library = path.name.partition("-")[0]
    measured_with = ResizeFilter.BILINEAR_CV if library == "ppcls" else ResizeFilter.BILINEAR_PILLOW
    if path.name.startswith(("timm-resnet50c", "timm-resnet50d")):
        measured_with = ResizeFilter.BICUBIC_PILLOW
    shorter = 320 if "fix_" in path.name else 256
    assert (spec.resize, spec.resize_hw) == (ResizeMode.SHORTER_SIDE, (shorter, shorter))
    assert spec.filter is measured_with


@pytest.mark.skipif(not VENDOR_FILES, reason="the vendor's files are not beside this repository")
@pytest.mark.parametrize("path", VENDOR_FILES, ids=lambda path: path.name)
def test_load_vdsp_stretches_when_file_is_the_vendors(path: Path) -> None:
    spec = load_vdsp(path)
    assert (spec.resize, spec.resize_hw, spec.crop_yx) == (ResizeMode.STRETCH, (256, 256), (16, 16))
    assert (spec.filter, spec.output_hw) == (ResizeFilter.BILINEAR_CV, (224, 224))


def test_load_vdsp_keeps_height_and_width_apart_when_they_differ() -> None:
    assert spec_from_vdsp_dict(VALUES, "f") == SPEC
    assert SPEC.output_hw == (224, 200)


@pytest.mark.parametrize(
    ("norm", "mean", "std", "unit_mean", "unit_std"),
    [
        ("MINUSMEAN_DIVSTD", [123.675] * 3, [58.395] * 3, 0.485, 0.229),
        ("DIV255", None, None, 0.0, 1.0),
        ("DIV1275_MINUSONE", None, None, 0.5, 0.5),
        ("EQUAL", [0.485] * 3, [0.229] * 3, 0.0, 1 / 255),
    ],
)
def test_load_vdsp_gives_unit_mean_when_norm_type_is_another(
    norm: str, mean: object, std: object, unit_mean: float, unit_std: float
) -> None:
    spec = spec_from_vdsp_dict(changed(NormaType=norm, Mean=mean, Std=std), "f")
    assert spec.norm is NormType(norm)
    assert spec.mean == pytest.approx((unit_mean,) * 3)
    assert spec.std == pytest.approx((unit_std,) * 3)


@pytest.mark.parametrize("code", ["RGB2BGR", "BGR2RGB"])
def test_load_vdsp_gives_bgr_when_channels_are_exchanged(code: str) -> None:
    assert spec_from_vdsp_dict(changed(ColorCvtCode=code), "f").colour is ColourOrder.BGR


def test_load_vdsp_takes_output_size_when_op_does_not_crop() -> None:
    values = changed(CropX=None, CropY=None, ResizeWidth=None, ResizeHeight=None, IimageWidth=None, IimageHeight=None)
    values["OpType"] = "FUSION_OP_RGB_RESIZE_CVTCOLOR_NORM_TENSOR"
    spec = spec_from_vdsp_dict(values, "f")
    assert (spec.resize_hw, spec.crop_hw, spec.crop_yx, spec.synthetic_hw) == (
        (224, 200),
        (224, 200),
        (0, 0),
        (224, 200),
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"Std": [0.229, 0.224]}, "f:OpConfig.Std: expected 3 numbers > 0, got [0.229, 0.224]"),
        ({"Std": [0.2, 0.2, 0]}, "f:OpConfig.Std: expected 3 numbers > 0, got [0.2, 0.2, 0]"),
        ({"Mean": None}, "f:OpConfig.Mean: missing, and DIV255_MINUSMEAN_DIVSTD needs it"),
        (
            {"Std": [58, 57, 57]},
            "f:OpConfig.Std: expected numbers of a 0..1 image, got [58.0, 57.0, 57.0]; a 0..255 image has NormaType "
            "MINUSMEAN_DIVSTD",
        ),
        (
            {"NormaType": "MINUSMEAN_DIVSTD", "Mean": [0.5, 0.5, 0.5], "Std": [0.2, 0.2, 0.2]},
            "f:OpConfig.Mean: expected numbers of a 0..255 image, got [0.5, 0.5, 0.5]; a 0..1 image has NormaType "
            "DIV255_MINUSMEAN_DIVSTD",
        ),
        ({"CropX": True}, "f:OpConfig.CropX: expected an integer in [0, 56], got true"),
        ({"CropX": 57}, "f:OpConfig.CropX: expected an integer in [0, 56], got 57"),
        ({"CropY": None}, "f:OpConfig.CropY: missing"),
        ({"ResizeWidht": 3}, "f:OpConfig.ResizeWidht: unknown key; did you mean 'ResizeWidth'?"),
        ({"OimageWidth": None}, "f:OpConfig.OimageWidth: missing"),
        ({"OimageWidth": 20000}, "f:OpConfig.OimageWidth: expected an integer in [1, 16384], got 20000"),
        ({"IimageFormat": "BGR888"}, "f:OpConfig.IimageFormat: expected 'RGB_PLANAR', got 'BGR888'"),
        (
            {"ResizeType": "BILINEAR"},
            "f:OpConfig.ResizeType: expected one of BILINEAR_CV, BILINEAR_PILLOW, BICUBIC_PILLOW, LANCZOS_PILLOW, "
            "NEAREST_PILLOW, got 'BILINEAR'; did you mean 'BILINEAR_CV'?",
        ),
        (
            {"OimageHeight": 256, "CropY": 0},
            "f:OpConfig.OimageHeight: the output [256, 200] does not fit the resized image [240, 256] [height, width]",
        ),
        (
            {"ResizeMode": "SHORTER_SIDE", "CropY": 8},
            "f:OpConfig.ResizeHeight: SHORTER_SIDE is one length: expected ResizeWidth 256, got 240",
        ),
        (
            {"ResizeMode": "SHORTER_SIDE", "ResizeHeight": 256, "CropY": 10},
            "f:OpConfig.CropY: SHORTER_SIDE crops at the centre: expected 16, or no such key",
        ),
    ],
)
def test_load_vdsp_names_key_when_it_is_wrong(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_from_vdsp_dict(changed(**config), "f")
    assert str(error.value) == message


@pytest.mark.parametrize(("input_hw", "side"), [((224, 224), 256), ((256, 256), 292), ((288, 224), 329)])
def test_load_vdsp_takes_sizes_of_the_network_when_it_has_none(
    tmp_path: Path, input_hw: tuple[int, int], side: int
) -> None:
    keys = ("IimageFormat", "ResizeType", "NormaType", "ColorCvtCode")
    config = {key: VALUES["OpConfig"][key] for key in keys} | {"NormaType": "DIV255"}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**VALUES, "OpConfig": config}), encoding="utf-8")
    found = load_vdsp(path, input_hw)
    assert (found.resize, found.resize_hw, found.crop_yx) == (ResizeMode.SHORTER_SIDE, (side, side), None)
    assert (found.output_hw, found.norm) == (input_hw, NormType.DIV255)
    assert load_vdsp(path).output_hw == (224, 224)


def test_load_vdsp_names_op_when_it_is_not_understood() -> None:
    values = {**VALUES, "OpType": "FUSION_OP_RGB_LETTERBOX_CVTCOLOR_NORM_TENSOR"}
    with pytest.raises(ConfigError) as error:
        spec_from_vdsp_dict(values, "f")
    assert str(error.value).startswith(
        "f:OpType: expected one of FUSION_OP_RGB_RESIZE_CVTCOLOR_CROP_NORM_TENSOR, "
        "FUSION_OP_RGB_RESIZE_CVTCOLOR_NORM_TENSOR, got 'FUSION_OP_RGB_LETTERBOX_CVTCOLOR_NORM_TENSOR'"
    )


def test_load_vdsp_reports_every_fault_when_several() -> None:
    with pytest.raises(ConfigError) as error:
        spec_from_vdsp_dict(changed(Std=1, Mean="x", NormType="EQUAL"), "f")
    assert len(str(error.value).splitlines()) == 3


def test_load_vdsp_names_file_when_it_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"x\.json:1: not valid JSON: "):
        load_vdsp(path)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        SHORTER,
        replace(SHORTER, resize=ResizeMode.NONE, resize_hw=None),
        replace(SHORTER, preprocess_as=PreprocessAs.PADDLECLAS, resize_hw=(255, 255)),
        replace(SPEC, colour=ColourOrder.BGR, filter=ResizeFilter.BICUBIC_PILLOW),
        spec_from_vdsp_dict(
            changed(NormaType="MINUSMEAN_DIVSTD", Mean=[123.6875, 116.28, 0.1], Std=[1, 57.12, 3]), "f"
        ),
        spec_from_vdsp_dict(changed(NormaType="EQUAL"), "f"),
        spec_from_vdsp_dict(changed(NormaType="DIV1275_MINUSONE"), "f"),
    ],
)
def test_to_vdsp_dict_round_trips_when_read_again(spec: PreprocessSpec) -> None:
    written = json.loads(json.dumps(to_vdsp_dict(spec)))
    assert spec_from_vdsp_dict(written, "f") == spec


def test_to_vdsp_dict_gives_the_files_numbers_when_in_0_to_255() -> None:
    values = changed(NormaType="MINUSMEAN_DIVSTD", Mean=[123.6875, 116.28, 103.53], Std=[58.395, 57.12, 57.375])
    assert to_vdsp_dict(spec_from_vdsp_dict(values, "f")) == values


def test_load_vdsp_preprocesses_as_torchvision_when_the_file_does_not_say() -> None:
    """As packages of before there was the key were made; what is torchvision's is still written without it."""
    written = to_vdsp_dict(SHORTER)
    assert "PreprocessAs" not in written["OpConfig"]  # type: ignore[operator]
    assert spec_from_vdsp_dict(written, "f").preprocess_as is PreprocessAs.TORCHVISION
    turned = to_vdsp_dict(replace(SHORTER, preprocess_as=PreprocessAs.PADDLECLAS))
    assert turned["OpConfig"]["PreprocessAs"] == "paddleclas"  # type: ignore[index]


@pytest.mark.parametrize(("room", "torchvision", "paddleclas"), [(1, 0, 0), (2, 1, 1), (3, 2, 1), (5, 2, 2), (7, 4, 3)])
def test_centre_offset_is_that_of_each_library(room: int, torchvision: int, paddleclas: int) -> None:
    assert centre_offset(room, PreprocessAs.TORCHVISION) == torchvision
    assert centre_offset(room, PreprocessAs.PADDLECLAS) == centre_offset(room, PreprocessAs.TRANSFORMERS) == paddleclas
