"""A network of three layers and its state dict, for the tests of checkpoints."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = OrderedDict(conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), fc=nn.Linear(4, 5))
    return nn.Sequential(layers).eval()


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
