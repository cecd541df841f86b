"""spec_comparison.py: when two descriptions are one preprocessing, and what differs first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import pytest
from spec_fixtures import SHORTER, SPEC

from pipeline.config.choices import PreprocessAs
from pipeline.config.spec_comparison import difference
from pipeline.config.vdsp import (
    ColourOrder,
    NormType,
    PreprocessSpec,
    ResizeFilter,
    spec_from_vdsp_dict,
    to_vdsp_dict,
)


def stored(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """What a device file makes of three numbers: the nearest float16, here by hand for 0.25 <= x < 0.5."""
    first, second, third = (round(x * 4096) / 4096 for x in values)
    return first, second, third


def test_difference_is_none_when_mean_is_rounded_to_float16() -> None:
    assert stored(SPEC.mean) == (0.485107421875, 0.4560546875, 0.406005859375)
    assert difference(SPEC, replace(SPEC, mean=stored(SPEC.mean))) is None


def test_difference_is_none_when_the_file_was_rounded_in_0_to_255() -> None:
    values = to_vdsp_dict(SPEC)
    stated = {"NormaType": "MINUSMEAN_DIVSTD", "Mean": [123.6875, 116.25, 103.5], "Std": [58.40625, 57.125, 57.375]}
    config = {**cast("Mapping[str, object]", values["OpConfig"]), **stated}
    device = spec_from_vdsp_dict({**values, "OpConfig": config}, "f")
    exact = replace(
        SPEC,
        mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
        std=(58.395 / 255, 57.12 / 255, 57.375 / 255),
    )
    assert difference(device, exact) is None


def test_difference_is_none_when_only_notation_or_synthetic_size_differs() -> None:
    assert difference(SPEC, replace(SPEC, norm=NormType.MINUSMEAN_DIVSTD, synthetic_hw=(1, 1))) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda spec: SHORTER, "resize is STRETCH [240, 256] against SHORTER_SIDE 256"),
        (lambda spec: replace(spec, crop_hw=(200, 200)), "crop size is [224, 200] against [200, 200]"),
        (lambda spec: replace(spec, crop_yx=(0, 28)), "crop offset is [10, 28] against [0, 28]"),
        (
            lambda spec: replace(spec, filter=ResizeFilter.BILINEAR_PILLOW),
            "resize filter is BILINEAR_CV against BILINEAR_PILLOW",
        ),
        (lambda spec: replace(spec, colour=ColourOrder.BGR), "colour order is RGB against BGR"),
        (
            lambda spec: replace(spec, mean=(0.485, 0.456, 0.407)),
            "mean is [0.485, 0.456, 0.406] against [0.485, 0.456, 0.407]",
        ),
        (
            lambda spec: replace(spec, std=(0.229, 0.224, 0.2255)),
            "std is [0.229, 0.224, 0.225] against [0.229, 0.224, 0.2255]",
        ),
    ],
)
def test_difference_says_first_field_when_specs_differ(
    make: Callable[[PreprocessSpec], PreprocessSpec], message: str
) -> None:
    assert difference(SPEC, make(SPEC)) == message


def test_difference_names_the_library_when_only_that_differs() -> None:
    other = replace(SHORTER, preprocess_as=PreprocessAs.PADDLECLAS)
    assert difference(SHORTER, other) == "PreprocessAs is torchvision against paddleclas"
