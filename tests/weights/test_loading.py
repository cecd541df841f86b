"""Networks with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError
from pipeline.models import zoo
from pipeline.weights.loading import load_network
from pipeline.weights.matching import COUNTER

CLASSES = 7


def test_load_network_computes_as_the_saved_network_when_counters_are_missing(tmp_path: Path) -> None:
    row = zoo.find_model("torchvision", "resnet18")
    torch.manual_seed(0)
    saved = zoo.build_network(row, CLASSES)
    state = {name: value for name, value in saved.state_dict().items() if not name.endswith(COUNTER)}
    torch.save(state, tmp_path / "weights.pth")
    found = load_network(row, tmp_path / "weights.pth", None, CLASSES)
    assert not any(tensor.is_meta for tensor in found.state_dict().values())
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(found(images), saved(images), rtol=0, atol=0)


def test_load_network_names_the_classes_when_the_checkpoint_has_others(tmp_path: Path) -> None:
    row = zoo.find_model("torchvision", "resnet18")
    torch.save(zoo.build_network(row, CLASSES).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(DataError, match="has 7 classes, wanted 5"):
        load_network(row, tmp_path / "weights.pth", None, 5)
