from __future__ import annotations

import functools

import pytest

from pipeline.models import cost, zoo

count = functools.cache(cost.count)


@pytest.mark.parametrize(
    ("library", "name", "params", "macs"),
    [
        # torchvision's own figures of its checkpoints, `num_params` and `_ops`
        ("torchvision", "resnet18", 11_689_512, 1.814),
        ("torchvision", "resnet50", 25_557_032, 4.089),
        ("torchvision", "wide_resnet101_2", 126_886_696, 22.753),
    ],
)
def test_count_gives_the_figures_of_the_library(library: str, name: str, params: int, macs: float) -> None:
    counted = count(zoo.find_model(library, name))
    assert counted.params == params
    assert round(counted.macs / 1e9, 3) == macs


@pytest.mark.parametrize("model", [m for m in zoo.MODELS if m.params], ids=lambda m: f"{m.library}-{m.name}")
def test_count_agrees_with_the_parameters_of_the_documents(model: zoo.Model) -> None:
    assert model.params is not None
    assert count(model).params / 1e6 == pytest.approx(model.params, abs=0.01)


def test_count_grows_with_the_image() -> None:
    small, large = (count(zoo.find_model("paddleclas", f"{fix}ResNet50_vd_ssld")) for fix in ("", "Fix_"))
    assert small.params == large.params
    assert large.macs / small.macs == pytest.approx((320 / 224) ** 2, rel=0.01)


@pytest.mark.parametrize(
    "model", [m for m in zoo.MODELS if m.name != "iresnet200"], ids=lambda m: f"{m.library}-{m.name}"
)
def test_estimate_is_near_the_count_of_a_network_of_the_table(model: zoo.Model) -> None:
    known, found = count(model), cost.estimate(model)
    assert found.params == known.params
    assert found.macs == pytest.approx(known.macs, rel=0.2)
