"""Which networks have a published checkpoint that can be fetched."""

from __future__ import annotations

import re

import pytest

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.weights import published


def test_check_gives_the_address_when_there_is_no_hash() -> None:
    with pytest.raises(ConfigError) as caught:
        published.check(zoo.find_model("paddleclas", "ResNet50"), "frontend.checkpoint")
    assert str(caught.value) == (
        "frontend.checkpoint: auto, but https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models/"
        "ResNet50_pretrained.pdparams (paddleclas ResNet50) has no published sha256 to check a download by; download "
        "it by hand and give the file"
    )


def test_check_says_so_when_no_address_is_known() -> None:
    with pytest.raises(ConfigError) as caught:
        published.check(zoo.find_model("official", "iresnet18"), "--pretrained_weights")
    assert str(caught.value) == (
        "--pretrained_weights: auto, but no published checkpoint of official iresnet18 is known; give a file"
    )


def test_every_address_of_the_table_belongs_to_a_row_and_is_secure() -> None:
    from pipeline.models.addresses import ADDRESSES

    assert ADDRESSES.keys() <= {(row.library, row.name) for row in zoo.MODELS}
    for row in zoo.MODELS:
        assert row.url is None or row.url.startswith("https://")
        assert row.sha256 is None or re.fullmatch(r"[0-9a-f]{8,64}", row.sha256)
        if row.library in ("torchvision", "timm") and row.name != "resnet50c":
            published.check(row, "--weights")
