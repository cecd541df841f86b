"""library_index.py: which networks of a library a checkpoint may be of, by the index that comes with the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pipeline.host.user_cache import FOLDER_VARIABLE
from pipeline.models import libraries
from pipeline.weights import library_index, library_search
from pipeline.weights.library_index import candidates, digest_of_shapes, is_known

SHAPES = {"conv.weight": (8, 3, 3, 3), "fc.weight": (5, 8), "norm.num_batches_tracked": (), "aux1.weight": (1,)}


def test_digest_of_shapes_is_of_names_and_shapes_in_any_order() -> None:
    backwards = dict(reversed(SHAPES.items()))
    assert digest_of_shapes(SHAPES, ["fc.weight"]) == digest_of_shapes(backwards, ["fc.weight"])
    assert digest_of_shapes(SHAPES, []) != digest_of_shapes({**SHAPES, "fc.weight": (6, 8)}, [])
    assert digest_of_shapes(SHAPES, []) != digest_of_shapes({**SHAPES, "fc.bias": (5,)}, [])


def test_digest_of_shapes_leaves_out_the_classifier_counters_and_branches() -> None:
    lean = {"conv.weight": (8, 3, 3, 3), "fc.weight": (7, 8)}
    assert digest_of_shapes(SHAPES, ["fc.weight"]) == digest_of_shapes(lean, ["fc.weight"])


def test_index_knows_the_networks_of_both_libraries() -> None:
    assert is_known("timm", "convnext_tiny") and is_known("torchvision", "vgg16_bn")
    assert not is_known("torchvision", "convnext_huge")


def test_candidates_are_none_of_strange_tensors() -> None:
    assert candidates("timm", SHAPES) == candidates("torchvision", {}) == candidates("other", SHAPES) == []


@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet14t", "deit_tiny_distilled_patch16_224"])
def test_candidates_have_the_networks_tensors_whatever_the_classes(name: str, classes: int) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    state = timm.create_model(name, num_classes=classes).state_dict()
    assert name in candidates("timm", {key: tuple(tensor.shape) for key, tensor in state.items()})


def test_find_makes_no_other_network_than_those_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    made: list[str] = []
    build = libraries.build

    def counted(library: str, name: str, *more: Any) -> nn.Module:
        made.append(name)
        return build(library, name, *more)

    monkeypatch.setattr(libraries, "build", counted)
    state = timm.create_model("convnext_atto", num_classes=4).state_dict()
    [found] = library_search.find(tmp_path / "best.pth", state)
    assert (found.row.name, found.classes, made) == ("convnext_atto", 4, ["convnext_atto"])


def test_find_tries_networks_of_the_family_that_the_index_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    known = library_index.is_known
    monkeypatch.setattr(
        library_index, "is_known", lambda library, name: name != "tf_mobilenetv3_large_100" and known(library, name)
    )
    listed = library_index.candidates
    monkeypatch.setattr(
        library_index,
        "candidates",
        lambda library, shapes: [name for name in listed(library, shapes) if not name.startswith("tf_")],
    )
    state = timm.create_model("mobilenetv3_large_100", num_classes=4).state_dict()
    found = {each.row.name for each in library_search.find(tmp_path / "best.pth", state)}
    assert found == {"mobilenetv3_large_100", "tf_mobilenetv3_large_100"}


def test_find_learns_keys_when_the_index_has_no_such_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(library_index, "candidates", lambda library, shapes: [])
    monkeypatch.setattr(libraries, "is_installed", lambda library: library == "timm")
    monkeypatch.setattr(timm, "list_modules", lambda: ["resnet"])
    monkeypatch.setattr(timm, "list_models", lambda module="": ["resnet14t", "resnet10t"])
    state = timm.create_model("resnet14t", num_classes=6).state_dict()
    found = library_search.find(tmp_path / "best.pth", state)
    assert [(each.row.name, each.classes) for each in found] == [("resnet14t", 6)]


@pytest.mark.slow
def test_find_takes_a_network_that_computes_while_it_is_made(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    state = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=3).state_dict()
    assert "vit_tiny_r_s16_p8_224" in {each.row.name for each in library_search.find(tmp_path / "best.pth", state)}
