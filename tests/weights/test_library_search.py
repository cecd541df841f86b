"""library_search.py: the network of a checkpoint, told by the files beside it, by its name, or by its keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.models import libraries
from pipeline.weights import library_search

timm = pytest.importorskip("timm", reason="needs the extra timm")


def names(found: list[library_search.Found]) -> list[tuple[str, int]]:
    return [(each.row.name, each.classes) for each in found]


def test_find_takes_the_network_that_timm_wrote_beside_the_weights(tmp_path: Path) -> None:
    state = timm.create_model("tf_efficientnet_b0", num_classes=7).state_dict()
    record = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": {"tag": "own"}}
    (tmp_path / "config.json").write_text(json.dumps(record), encoding="utf-8")
    assert names(library_search.find(tmp_path / "model.safetensors", state)) == [("tf_efficientnet_b0", 7)]


def test_find_takes_the_longest_name_in_the_files_name_that_fits(tmp_path: Path) -> None:
    state = timm.create_model("mobilenetv3_small_050", num_classes=3).state_dict()
    assert names(library_search.find(tmp_path / "mobilenetv3-small-050_best.pth", state)) == [
        ("mobilenetv3_small_050", 3)
    ]


def test_find_compares_keys_within_the_families_that_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of equal tensors that pad otherwise are all named."""
    monkeypatch.setattr(libraries, "is_installed", lambda library: library == "timm")
    some = ["efficientnet_b0", "tf_efficientnet_b0", "efficientnet_b1", "ghostnet_050", "mobilenetv3_small_050"]
    families = {"efficientnet": some[:3], "ghostnet": some[3:4], "mobilenetv3": some[4:]}
    monkeypatch.setattr(timm, "list_modules", lambda: list(families))
    monkeypatch.setattr(timm, "list_models", lambda module="": families.get(module, some))
    state = timm.create_model("efficientnet_b0", num_classes=5).state_dict()
    assert names(library_search.find(tmp_path / "best.pth", state)) == [
        ("efficientnet_b0", 5),
        ("tf_efficientnet_b0", 5),
    ]
    assert library_search.find(tmp_path / "best.pth", {"a.weight": state["conv_stem.weight"]}) == []


def test_classes_in_reads_both_classifiers_of_a_distilled_network(tmp_path: Path) -> None:
    from pipeline.models import zoo

    state = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4).state_dict()
    assert library_search.classes_in(zoo.find_model("timm", "deit_tiny_distilled_patch16_224"), state) == 4
    assert library_search.classes_in(zoo.find_model("timm", "deit_tiny_patch16_224"), state) is None
