"""Our preprocessing beside the transforms of the libraries that networks come from, on the same Pillow images.

Seen with torchvision 0.29.1, timm 1.0.31, transformers 5.24.0 and Pillow 13.0.0. Differences are in steps of 255.
PaddleClas is held by its published arithmetic in tests/data/test_preprocess.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config.build_file import load_build_file
from pipeline.config.choices import PreprocessAs
from pipeline.config.vdsp import PreprocessSpec, ResizeFilter, ResizeMode
from pipeline.data import preprocess
from pipeline.models.processors import of_transformers as recipe_of_transformers

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = 56
SIZES = [(75 + step, 100 + 7 * step % 43) for step in range(12)] + [(100, 75), (57, 300), (64, 64), (333, 499)]
FILTERS = {"bilinear": ResizeFilter.BILINEAR_PILLOW, "bicubic": ResizeFilter.BICUBIC_PILLOW}


def spec(size: int, interpolation: str, preprocess_as: PreprocessAs = PreprocessAs.TORCHVISION) -> PreprocessSpec:
    return PreprocessSpec(
        resize=ResizeMode.SHORTER_SIDE,
        resize_hw=(size, size),
        filter=FILTERS[interpolation],
        crop_hw=(CROP, CROP),
        crop_yx=None,
        mean=MEAN,
        std=STD,
        preprocess_as=preprocess_as,
        synthetic_hw=(size, size),
    )


def picture(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: smooth colours with noise."""
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    waves = 127 + 90 * np.sin(np.arange(1, 4) * (6 * x + 3 * y))
    noise = np.random.default_rng(height * width).normal(0, 25, (height, width, 3))
    return (waves + noise).clip(0, 255).astype(np.uint8)


def steps(ours: PreprocessSpec, theirs: Callable[[Image.Image], Any]) -> tuple[float, float]:
    """Return the largest difference, and the largest mean difference of a picture, in steps of 255."""
    differences = []
    for height, width in SIZES:
        image = picture(height, width)
        found = np.asarray(theirs(Image.fromarray(image)))
        made = preprocess.apply(ours, image.transpose(2, 0, 1))
        assert found.shape == made.shape
        differences.append(abs(made - found) * 255 * np.array(STD).reshape(3, 1, 1))
    return max(float(each.max()) for each in differences), max(float(each.mean()) for each in differences)


EQUAL = 0.001  # float32 rounding of a step


@pytest.fixture(scope="module")
def torchvision() -> Any:
    return pytest.importorskip("torchvision", reason="compares with torchvision's own transforms")


@pytest.mark.parametrize("interpolation", FILTERS)
def test_equals_torchvision_v1(torchvision: Any, interpolation: str) -> None:
    from torchvision import transforms as v1

    mode = v1.InterpolationMode(interpolation)
    theirs = v1.Compose([v1.Resize(64, mode), v1.CenterCrop(CROP), v1.ToTensor(), v1.Normalize(MEAN, STD)])
    assert steps(spec(64, interpolation), theirs)[0] < EQUAL


@pytest.mark.parametrize("interpolation", FILTERS)
def test_equals_torchvision_v2_on_pillow_images(torchvision: Any, interpolation: str) -> None:
    import torch
    from torchvision.transforms import v2

    resize = [v2.Resize(64, v2.InterpolationMode(interpolation)), v2.CenterCrop(CROP)]
    scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    assert steps(spec(64, interpolation), v2.Compose([*resize, *scale]))[0] < EQUAL


@pytest.mark.parametrize("interpolation", FILTERS)
def test_is_within_a_step_of_torchvision_v2_on_tensors(torchvision: Any, interpolation: str) -> None:
    """Its kernels for uint8 tensors round between the two axes as Pillow's do, with weights of fewer bits."""
    import torch
    from torchvision.transforms import v2

    resize = [v2.PILToTensor(), v2.Resize(64, v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(CROP)]
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    largest, mean = steps(spec(64, interpolation), v2.Compose([*resize, *scale]))
    assert largest < 1 + EQUAL
    assert mean < 0.1


def test_equals_the_preset_of_torchvisions_weights(torchvision: Any) -> None:
    ours = replace(spec(256, "bilinear"), crop_hw=(224, 224))
    assert steps(ours, torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms())[0] < EQUAL


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("crop_pct", [0.875, 0.95])
def test_equals_timm(torchvision: Any, interpolation: str, crop_pct: float) -> None:
    """Its Resize is the input size over crop_pct, cut to an integer."""
    data = pytest.importorskip("timm.data", reason="compares with timm's own transforms")
    theirs = data.create_transform(
        (3, CROP, CROP), interpolation=interpolation, mean=MEAN, std=STD, crop_pct=crop_pct, is_training=False
    )
    assert steps(spec(int(CROP / crop_pct), interpolation), theirs)[0] < EQUAL


def of_transformers(name: str, resample: str, **size: object) -> Callable[[Image.Image], Any]:
    transformers = pytest.importorskip("transformers", reason="compares with transformers' own image processors")
    number = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[resample]
    processor = getattr(transformers, name)(resample=int(number), image_mean=MEAN, image_std=STD, **size)
    return lambda image: np.asarray(processor(images=image, return_tensors="np")["pixel_values"])[0]


RESNET = {"size": {"shortest_edge": CROP}, "crop_pct": 0.875}  # ConvNeXT's processor is that of its ResNets too


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", FILTERS)
def test_equals_transformers_on_pillow_images(torchvision: Any, interpolation: str) -> None:
    theirs = of_transformers("ConvNextImageProcessorPil", interpolation, **RESNET)
    assert steps(spec(64, interpolation, PreprocessAs.TRANSFORMERS), theirs)[0] < EQUAL
    # As torchvision the corner of the crop is another where an odd number of pixels is over.
    assert steps(spec(64, interpolation), theirs)[1] > 5


@pytest.mark.slow
@pytest.mark.parametrize(("interpolation", "limit"), [("bilinear", 1), ("bicubic", 3)])
def test_is_within_three_steps_of_transformers_on_tensors(torchvision: Any, interpolation: str, limit: int) -> None:
    """Its default since version 5, by torchvision's kernels."""
    theirs = of_transformers("ConvNextImageProcessor", interpolation, **RESNET)
    largest, mean = steps(spec(64, interpolation, PreprocessAs.TRANSFORMERS), theirs)
    assert largest < limit + EQUAL
    assert mean < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", FILTERS)
def test_equals_transformers_when_it_stretches(torchvision: Any, interpolation: str) -> None:
    theirs = of_transformers("ViTImageProcessorPil", interpolation, size={"height": CROP, "width": CROP})
    ours = replace(spec(CROP, interpolation), resize=ResizeMode.STRETCH, crop_yx=(0, 0))
    assert steps(ours, theirs)[0] < EQUAL


CROPPED: dict[str, object] = {"do_center_crop": True, "crop_size": {"height": CROP, "width": CROP}}
PROCESSORS: dict[str, list[dict[str, object]]] = {
    "ViT": [{"size": {"height": CROP, "width": CROP}}],
    "Beit": [{"size": {"height": 64, "width": 64}, **CROPPED}],
    "DeiT": [{"size": {"height": 64, "width": 64}, **CROPPED}],
    "Levit": [{"size": {"shortest_edge": CROP}, **CROPPED}, {"size": {"height": 64, "width": 64}, **CROPPED}],
    "PoolFormer": [{"size": {"shortest_edge": 60}, "crop_pct": 0.9, **CROPPED}],
    "Bit": [{"size": {"shortest_edge": 64}, **CROPPED}],
    "CLIP": [{"size": {"shortest_edge": 64}, **CROPPED}],
    "MobileNetV1": [{"size": {"shortest_edge": 64}, **CROPPED}],
    "MobileNetV2": [{"size": {"shortest_edge": 64}, **CROPPED}],
    "MobileViT": [{"size": {"shortest_edge": 64}, **CROPPED}],
    "ConvNext": [{"size": {"shortest_edge": CROP}, "crop_pct": 0.875}, {"size": {"shortest_edge": 384}}],
    "EfficientNet": [
        {"size": {"height": CROP, "width": CROP}, "rescale_factor": 1 / 255, "include_top": True},
        {"size": {"height": CROP, "width": CROP}, "rescale_factor": 1 / 255, "include_top": False},
        {"size": {"height": CROP, "width": CROP}, "rescale_factor": 1 / 127.5, "rescale_offset": True},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_init_reads_what_each_processor_of_transformers_writes(torchvision: Any, tmp_path: Path, name: str) -> None:
    """Of version 4, and of version 5 in its form on Pillow images."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers' own image processors")
    kind = f"{name}ImageProcessor"
    for record in PROCESSORS[name]:
        make = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)
        processor = make(resample=3, **record)
        said = {**json.loads(processor.to_json_string()), "image_processor_type": kind}
        recipe = recipe_of_transformers(said, None, "x")
        frontend = {"type": "torchvision", "model": "resnet18", "shape": {"input": [1, 3, *recipe.crop_hw]}}
        images = {"process_ops": recipe.process_ops(), "preprocess_as": recipe.preprocess_as.value}
        path = tmp_path / "x.yaml"
        path.write_text(json.dumps({"name": "x", "frontend": frontend, "dataset": images}), encoding="utf-8")
        ours = load_build_file(path).preprocess
        for height, width in ((75, 101), (123, 64)):
            image = picture(height, width)
            found = np.asarray(processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"])[0]
            assert np.abs(preprocess.apply(ours, image.transpose(2, 0, 1)) - found).max() < 1e-4
