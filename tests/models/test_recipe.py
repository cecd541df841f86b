"""recipe.py: what timm's and transformers' records mean, beside what those libraries' transforms do with them."""

from __future__ import annotations

import pytest

from pipeline.config.choices import PreprocessAs
from pipeline.errors import ConfigError
from pipeline.models.processors import of_transformers
from pipeline.models.recipe import of_timm

HALF = (0.5, 0.5, 0.5)
CROPPED: dict[str, object] = {"do_center_crop": True, "crop_size": 224}
IMAGENET: dict[str, object] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BILINEAR = {**IMAGENET, "resample": 2}


def timm(**changes: object) -> dict[str, object]:
    record = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center"}
    return {**record, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 10, **changes}


def test_of_timm_resizes_to_the_floor_of_size_over_share() -> None:
    found = of_timm(timm(), "x")
    assert (found.resize, found.crop_hw, found.interpolation) == (235, (224, 224), "BICUBIC_PILLOW")  # 235.79
    assert (found.mean, found.std, found.classes) == (HALF, HALF, 10)


def test_of_timm_stretches_when_the_crop_mode_is_squash() -> None:
    assert of_timm(timm(crop_mode="squash", input_size=(3, 224, 320)), "x").resize == (235, 336)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "border"}, "x: crop_mode 'border' at 224x224 px: write process_ops"),
        ({"input_size": [3, 224, 320]}, "x: crop_mode 'center' at 224x320 px"),
        ({"interpolation": "hamming"}, "x: interpolation 'hamming'; known are"),
        ({"mean": "0.5"}, "x: mean is '0.5', wanted a number for each channel"),
        ({"crop_pct": 1.1}, "x: crops 224x224 px of images of 203x203, which pads them"),
        ({"crop_pct": "big"}, "x: expected a number, got 'big'"),
    ],
)
def test_of_timm_names_what_build_files_cannot_say(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of_timm(timm(**changes), "x")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("record", "resize", "crop"),
    [
        ({"size": {"height": 224, "width": 224}}, (224, 224), (224, 224)),  # ViT, Swin
        ({"size": 224}, (224, 224), (224, 224)),  # the same of 2021
        # DeiT, BeiT: stretched, then cropped
        ({"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224}, (256, 256), (224, 224)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            256,
            224,
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 256, 224),  # ConvNeXt, ResNet
        ({"size": 224, "crop_pct": 0.875}, 256, 224),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), 384),
        (
            {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}, "do_center_crop": True}
            | {"crop_size": {"height": 224, "width": 224}},
            256,
            224,
        ),
        # One number, as files of 2021 and 2022 have it: the shorter side to some processors.
        ({"feature_extractor_type": "MobileViTFeatureExtractor", "size": 288, **CROPPED}, 288, 224),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 256, **CROPPED}, 256, 224),
        ({"feature_extractor_type": "LevitFeatureExtractor", "size": 224, **CROPPED}, 256, 224),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, **CROPPED}, (256, 256), 224),
        (
            {"image_processor_type": "LevitImageProcessor", "size": {"height": 256, "width": 256}} | CROPPED,
            (256,) * 2,
            224,
        ),
        # PoolFormer scales the size, and crops to another.
        ({"feature_extractor_type": "PoolFormerFeatureExtractor", "size": 256, "crop_pct": 0.9, **CROPPED}, 284, 224),
        (
            {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.9}
            | CROPPED,
            426,
            224,
        ),
    ],
)
def test_of_transformers_reads_sizes_as_each_processor_does(
    record: dict[str, object], resize: object, crop: int | tuple[int, int]
) -> None:
    found = of_transformers({**record, **BILINEAR}, None, "x")
    assert found.resize == resize
    assert found.crop_hw == ((crop, crop) if isinstance(crop, int) else crop)
    assert found.interpolation == "BILINEAR_PILLOW"
    assert found.preprocess_as is PreprocessAs.TRANSFORMERS


@pytest.mark.parametrize("name", ["Perceiver", "TextNet", "Siglip2", "Pixtral"])
def test_of_transformers_refuses_processors_that_do_what_build_files_cannot_say(name: str) -> None:
    record = {"image_processor_type": f"{name}ImageProcessor", "size": {"height": 224, "width": 224}, **IMAGENET}
    with pytest.raises(ConfigError, match=f"x: {name}ImageProcessor .*, which process_ops cannot say"):
        of_transformers(record, None, "x")


@pytest.mark.parametrize("does_normalize", [True, False])
@pytest.mark.parametrize(("factor", "offset"), [(1 / 255, False), (1 / 127.5, False), (1 / 127.5, True)])
def test_of_transformers_reads_efficientnets_two_normalisations(
    factor: float, offset: bool, does_normalize: bool
) -> None:
    """x / 255 or x / 127.5 - 1, less the mean, over the std, and over the std once more.

    So in EfficientNetImageProcessor of transformers 4.57.6 and 5.24.0; google/efficientnet-b0 has the factor 1 / 255.
    """
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.4, 0.2]
    record = {"size": {"height": 8, "width": 8}, "image_mean": mean, "image_std": std, "rescale_factor": factor}
    found = of_transformers(
        {**record, "rescale_offset": offset, "include_top": True, "do_normalize": does_normalize, "resample": 3},
        None,
        "x",
    )
    for channel in range(3):
        for pixel in (0, 100, 255):
            wanted = pixel * factor - offset
            wanted = (wanted - mean[channel]) / std[channel] if does_normalize else wanted
            assert (pixel / 255 - found.mean[channel]) / found.std[channel] == pytest.approx(wanted / std[channel])
    assert found.interpolation == "BICUBIC_PILLOW"


def test_of_transformers_normalises_twice_when_only_the_processor_is_named() -> None:
    """EfficientNetImageProcessor has `include_top` on where its file does not say."""
    record = {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 8, "width": 8}, "resample": 0}
    found = of_transformers({**record, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.4, 0.2]}, None, "x")
    assert found.mean == (0.1, 0.2, 0.3)
    assert found.std == pytest.approx((0.25, 0.16, 0.04))


def test_of_transformers_exchanges_channels_when_the_processor_is_mobilevits() -> None:
    record = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 288}, "crop_size": 256}
    found = of_transformers({**record, "do_center_crop": True}, None, "x")
    assert (found.bgr, found.mean, found.std) == (True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert {"type": "CvtColor", "code": "COLOR_RGB2BGR"} in found.process_ops()


def test_of_transformers_takes_the_networks_size_when_the_file_has_none() -> None:
    assert of_transformers(dict(IMAGENET), 96, "x").crop_hw == (96, 96)
    with pytest.raises(ConfigError, match="x: size None"):
        of_transformers(dict(IMAGENET), None, "x")


@pytest.mark.parametrize("said", [{}, {"interpolation": "", "mean": None, "std": None}])
def test_of_timm_takes_timms_own_values_for_what_is_not_said(said: dict[str, object]) -> None:
    found = of_timm({"input_size": [3, 224, 224], **said}, "x")
    assert (found.resize, found.interpolation) == (256, "BICUBIC_PILLOW")
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_one_number_is_that_of_all_channels() -> None:
    assert of_timm(timm(mean=0.5, std=[0.25]), "x").mean == HALF
    assert of_timm(timm(mean=0.5, std=[0.25]), "x").std == (0.25, 0.25, 0.25)
    assert of_transformers({**BILINEAR, "size": 8, "image_mean": 0.5}, None, "x").mean == HALF


@pytest.mark.parametrize(
    ("kind", "interpolation", "resize", "crop"),
    [
        ("CLIP", "BICUBIC_PILLOW", 224, 224),
        ("DeiT", "BICUBIC_PILLOW", (256, 256), 224),
        ("Levit", "BICUBIC_PILLOW", 256, 224),
        ("ConvNext", "BICUBIC_PILLOW", (384, 384), 384),
        ("MobileNetV2", "BILINEAR_PILLOW", 256, 224),
        ("PoolFormer", "BICUBIC_PILLOW", 248, 224),
    ],
)
def test_of_transformers_takes_the_processors_own_values_for_what_is_not_said(
    kind: str, interpolation: str, resize: object, crop: int
) -> None:
    """As of transformers 5.24.0: `KindImageProcessorPil()`."""
    found = of_transformers({"image_processor_type": f"{kind}ImageProcessor", **IMAGENET}, None, "x")
    assert (found.interpolation, found.resize, found.crop_hw) == (interpolation, resize, (crop, crop))


def test_of_transformers_asks_for_the_filter_where_versions_differ() -> None:
    record = {"image_processor_type": "PvtImageProcessor", "size": {"height": 8, "width": 8}, **IMAGENET}
    with pytest.raises(ConfigError, match="x: PvtImageProcessor without resample differs between versions"):
        of_transformers(record, None, "x")
    assert of_transformers({**record, "resample": 3}, None, "x").interpolation == "BICUBIC_PILLOW"


def test_of_transformers_passes_over_keys_that_the_processor_does_not_read() -> None:
    record = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, **BILINEAR}
    found = of_transformers({**record, "crop_pct": 0.9, "do_flip_channel_order": True}, None, "x")
    assert (found.resize, found.crop_hw, found.bgr) == ((224, 224), (224, 224), False)


def test_of_transformers_crops_images_as_they_are_when_it_does_not_resize() -> None:
    record = {"image_processor_type": "CLIPImageProcessor", "size": 256, "do_resize": False, **CROPPED, **IMAGENET}
    found = of_transformers(record, None, "x")
    assert [op["type"] for op in found.process_ops()] == ["DecodeImage", "CenterCrop", "Normalize", "ToTensor"]
    assert str(found).startswith("no Resize, CenterCrop 224") and found.sized(192).resize is None
    with pytest.raises(ConfigError, match="x: neither resizes nor crops images"):
        of_transformers({**record, "do_center_crop": False}, None, "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 200}}, "x: crops 224x224 px of images of 200x200, which pads them"),
        ({"size": {"shortest_edge": 224, "longest_edge": 320}}, "x: size has a longest_edge"),
        ({"image_processor_type": "DonutImageProcessor"}, "x: DonutImageProcessor fits images into a frame"),
    ],
)
def test_of_transformers_names_what_build_files_cannot_say(changes: dict[str, object], message: str) -> None:
    record = {"image_processor_type": "CLIPImageProcessor", "size": 256, **CROPPED, **BILINEAR}
    with pytest.raises(ConfigError, match=message):
        of_transformers({**record, **changes}, None, "x")


def test_sized_keeps_the_ratio_of_resize_and_crop() -> None:
    found = of_timm(timm(crop_pct=0.875), "x")
    assert (found.resize, found.sized(112).resize, found.sized(112).crop_hw) == (256, 128, (112, 112))
