"""Which network of the table a checkpoint is of, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.models import checkpoints, zoo
from pipeline.models.zoo import Model


def networks_of(state: Mapping[str, Tensor], path: Path) -> tuple[list[Model], int]:
    """Return the rows of the table that a state dict fits, in their order, and how many classes it has.

    Args:
        state: as `checkpoints.read_state_dict` gives it.
        path: of the checkpoint; its suffix says whose names it has.
    """
    vectors = [tensor for tensor in state.values() if tensor.ndim == 1]
    classes = len(vectors[-1]) if vectors else 0  # the bias of the last layer
    fitting: dict[object, bool] = {}
    found = []
    for row in zoo.MODELS:
        made = (row.design, row.depths, row.bottleneck)
        # Rows of equal networks, as those of torchvision and timm, are tried once.
        if made not in fitting:
            with torch.device("meta"):  # shapes without memory
                network = zoo.build_network(row, max(1, classes))
            fitting[made] = checkpoints.fits(network, state, path)
        if fitting[made]:
            found.append(row)
    return found, classes
