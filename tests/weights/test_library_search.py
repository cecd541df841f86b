"""library_search.py: the network of a checkpoint, told by the files beside it, by its name, or by its keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.models import libraries
from pipeline.weights import library_near, library_search

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


def with_head(name: str, place: str, head: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network of timm whose classifier at `place` is another."""
    network = timm.create_model(name)
    parent, _, last = place.rpartition(".")
    setattr(network.get_submodule(parent), last, head)
    state: dict[str, torch.Tensor] = network.state_dict()
    return state


@pytest.mark.parametrize(
    ("name", "place", "width"),
    [("mobilenetv3_small_050", "classifier", 1024), ("convnext_atto", "head.fc", 320), ("regnety_002", "head.fc", 368)],
)
def test_find_takes_a_classifier_of_another_name(name: str, place: str, width: int, tmp_path: Path) -> None:
    from pipeline.models import zoo
    from pipeline.weights import matching

    linear = torch.nn.Linear(width, 5)
    state = with_head(name, place, torch.nn.Sequential(torch.nn.Dropout(), linear))
    [found] = library_search.find(tmp_path / "best.pth", state)
    assert (found.row.name, found.classes) == (name, 5)
    assert f"'{place}.1' is taken for '{place}' of timm {name}" in library_search.describe_renamed(found.row, state)
    network = zoo.build_network(found.row, 5)
    matching.load_strictly(network, state, tmp_path / "best.pth", name)
    assert torch.equal(network.state_dict()[f"{place}.weight"], linear.weight)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda: timm.create_model("mobilenetv3_small_050", num_classes=0), "without a classifier; give"),
        (
            lambda: timm.create_model("mobilenetv3_small_050", in_chans=1),
            "for images of 1 channel, which is not built here; export it to ONNX and give that file",
        ),
        (
            lambda: timm.create_model("mobilenetv3_small_050", in_chans=5),
            "for images of 5 channels, which is not built here; networks of 1 or 3 channels are taken",
        ),
    ],
)
def test_describe_says_what_of_a_network_is_otherwise(state: Callable[[], torch.nn.Module], said: str) -> None:
    found = library_near.describe(state().state_dict())
    assert found is not None
    assert found.startswith(f"is timm/mobilenetv3_small_050 {said}")


def test_describe_names_a_classifier_of_several_layers() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(1024, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))
    found = library_near.describe(with_head("mobilenetv3_small_050", "classifier", layers))
    assert found == (
        "is timm/mobilenetv3_small_050 with a classifier of its own ('classifier', 4 tensors); export the network to "
        "ONNX and give that file"
    )


def test_describe_knows_nothing_of_what_fits_or_is_strange() -> None:
    assert library_near.describe(timm.create_model("mobilenetv3_small_050", num_classes=3).state_dict()) is None
    assert library_near.describe({"a.weight": torch.zeros(3, 4), "a.bias": torch.zeros(3)}) is None
