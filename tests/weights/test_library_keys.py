"""library_keys.py: the keys of a library's networks, learnt once and then read from the user's cache."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.host.user_cache import FOLDER_VARIABLE
from pipeline.models import libraries
from pipeline.weights import library_search
from pipeline.weights.library_keys import KnownKeys, digest, patterns, without_values

timm = pytest.importorskip("timm", reason="needs the extra timm")

SOME = ("mobilenetv3_small_050", "resnet10t", "resnet14t")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks" / f"timm-{libraries.version_of('timm')}.json"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the networks that are made from here on."""
    names: list[str] = []
    make = libraries.build

    def build(library: str, name: str, num_classes: int, hw: tuple[int, int] | None = None) -> nn.Module:
        names.append(name)
        return make(library, name, num_classes, hw)

    monkeypatch.setattr(libraries, "build", build)
    return names


def keys_of(name: str) -> Iterable[str]:
    return list(timm.create_model(name, num_classes=3).state_dict())


@pytest.mark.parametrize("name", SOME)
def test_networks_without_values_have_the_shapes_of_real_ones(name: str) -> None:
    with without_values():
        empty = libraries.build("timm", name, 1000).state_dict()
    wanted = timm.create_model(name, num_classes=1000).state_dict()
    assert {key: tensor.shape for key, tensor in empty.items()} == {key: tensor.shape for key, tensor in wanted.items()}
    assert all(tensor.is_meta for key, tensor in empty.items() if key.endswith("weight"))


def test_digest_and_patterns_are_those_of_a_real_network(cache: Path) -> None:
    known = KnownKeys("timm")
    for name in SOME:
        assert known.digest(name) == digest(keys_of(name))
        assert set(known.patterns(name)) == patterns(keys_of(name))
        assert not known.has_branches(name)
    assert len({known.digest(name) for name in SOME}) == 3


def test_digest_leaves_out_the_counters_that_old_checkpoints_do_not_have() -> None:
    assert digest(["a.weight", "a.num_batches_tracked"]) == digest(["a.weight"]) != digest(["b.weight"])


def test_patterns_leave_out_numbers() -> None:
    assert patterns(["layers.0.1.weight", "layers.12.3.weight"]) == patterns(["layers.7.7.weight"])


def test_known_keys_makes_no_network_again_when_the_cache_has_it(cache: Path, built: list[str]) -> None:
    first = KnownKeys("timm")
    found = [(first.digest(name), first.patterns(name)) for name in SOME]
    first.save()
    assert built == list(SOME)
    again = KnownKeys("timm")
    assert [(again.digest(name), again.patterns(name)) for name in SOME] == found
    assert built == list(SOME)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"resnet10t": 3}', '{"resnet10t": {"digest": "0"}}'])
def test_known_keys_learns_anew_when_the_cache_is_damaged(cache: Path, built: list[str], content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content, encoding="utf-8")
    known = KnownKeys("timm")
    assert known.digest("resnet10t") == digest(keys_of("resnet10t"))
    known.save()
    assert list(json.loads(cache.read_text(encoding="utf-8"))) == ["resnet10t"]


def test_known_keys_are_used_when_the_cache_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    known = KnownKeys("timm")
    assert known.digest("resnet10t") == digest(keys_of("resnet10t"))
    known.save()


def test_a_network_that_cannot_be_made_has_no_keys(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownKeys("timm")
    assert (known.digest("no_such_network"), known.patterns("no_such_network")) == (None, [])


def test_find_makes_only_networks_of_the_same_keys_when_the_cache_knows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[str]
) -> None:
    monkeypatch.setattr(libraries, "is_installed", lambda library: library == "timm")
    monkeypatch.setattr(libraries, "names_of", lambda library: list(SOME))
    monkeypatch.setattr(timm, "list_modules", lambda: ["resnet"])
    monkeypatch.setattr(timm, "list_models", lambda module="": list(SOME))
    state = timm.create_model("resnet14t", num_classes=6).state_dict()
    without_counters = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    for given in (state, without_counters):
        found = library_search.find(tmp_path / "best.pth", given)
        assert [(each.row.name, each.classes) for each in found] == [("resnet14t", 6)]
    made = len(built)
    library_search.find(tmp_path / "best.pth", state)
    assert built[made:] == ["resnet14t"]


def test_without_values_leaves_numbers_alone() -> None:
    with without_values():
        assert torch.linspace(0, 1, 3).mul_(2).tolist() == [0, 1, 2]
        assert nn.Linear(2, 3).weight.is_meta
