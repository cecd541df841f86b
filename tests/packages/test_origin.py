"""origin.py: packages by the network that they were built from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from run_fixtures import TinyWorkspace

from pipeline.config.documents import find_data_file
from pipeline.errors import ConfigError
from pipeline.models.zoo import MODELS
from pipeline.packages.origin import build_file_of, compare_weights, open_package_of, origin_of


def write_build(folder: Path, **frontend: object) -> None:
    (folder / "build.json").write_text(json.dumps({"frontend": frontend}))


def test_open_package_of_takes_the_newest_of_the_network(in_workspace: TinyWorkspace) -> None:
    first, other = in_workspace.folder, in_workspace.folder.with_name("other-int8-max-3_32_32-vacc")
    shutil.copytree(first, other)
    write_build(first, type="paddleclas", model="ResNet50", checkpoint=None)
    write_build(other, type="timm", model="resnet50", checkpoint=None)
    os.utime(other / "manifest.json", (2e9, 2e9))  # newer, but of another network
    assert open_package_of("ResNet50").folder.resolve() == first.resolve()
    write_build(other, type="paddle", checkpoint="models/ResNet50_infer")
    assert open_package_of("ResNet50").folder.resolve() == other.resolve()


def test_open_package_of_says_how_to_build_when_there_is_none(in_workspace: TinyWorkspace) -> None:
    with pytest.raises(ConfigError) as error:
        open_package_of("ResNet50_vd")
    assert str(error.value) == (
        "--model_name ResNet50_vd: no package of it in deploy_weights/; build one: python -m pipeline build "
        "ppcls_resnet50_vd.yaml --weights ResNet50_vd_pretrained.pdparams --dataset DIR"
    )
    with pytest.raises(ConfigError, match="--model_name: paddleclas has no network 'Resnet50'; did you mean 'ResNet50"):
        open_package_of("Resnet50")


def test_every_network_of_paddleclas_has_the_build_file_that_is_named() -> None:
    for model in MODELS:
        if model.library == "paddleclas":
            text = find_data_file("build_configs", build_file_of(model.name)).read_text()
            assert f"  model: {model.name}\n" in text


def test_compare_weights_names_those_of_the_package(tiny: TinyWorkspace) -> None:
    assert origin_of(tiny.folder) is None
    assert compare_weights(tiny.package, Path("a.pdparams")) is None  # not known
    write_build(tiny.folder, type="paddleclas", model="ResNet50", checkpoint="x/../a.pdparams")
    assert compare_weights(tiny.package, None) is None
    assert compare_weights(tiny.package, Path("a.pdparams")) is None
    assert str(compare_weights(tiny.package, Path("b.pdparams"))).endswith(
        "was built from x/../a.pdparams, not from b.pdparams"
    )
