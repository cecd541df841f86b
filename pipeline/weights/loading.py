"""A network of the table, or of an installed library, with the weights of a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from pipeline.models import zoo
from pipeline.weights import checkpoints, matching


def load_network(
    row: zoo.Model, path: Path, key: str | None, num_classes: int, hw: tuple[int, int] | None = None
) -> nn.Module:
    """Return a network in evaluation mode whose tensors are those of a checkpoint.

    Args:
        row: the network.
        path: the checkpoint.
        key: which of several state dicts in it; None: as `checkpoints.read_state_dict` chooses.
        num_classes: of the network.
        hw: height and width of the input, for networks of an installed library whose parameters depend on them.

    Raises:
        DataError: the checkpoint cannot be read, or does not fit the network.
    """
    state = checkpoints.read_state_dict(path, key)
    # Random weights of wide_resnet50_2 take .3 s. Those of libraries may hold tensors that no checkpoint has.
    without_values = nullcontext() if row.design is zoo.Design.INSTALLED else torch.device("meta")
    with without_values:
        network = zoo.build_network(row, num_classes, hw)
    matching.load_strictly(network, state, path, f"{row.library} {row.name}")
    return network
