"""Names of tensors as the network has them, without what wrappers, scripts and training put before and beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Parts of names by wrappers of the whole network or of parts of it: torch.compile, FSDP, activation checkpoints.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# DataParallel around the convolutions alone, as PyTorch's ImageNet example has it for AlexNet and VGG.
_PART_IN_PARALLEL = re.compile(r"^features\.module\.")
# A network in two parts, as OpenMMLab has it; the head holds the classifier by its own name.
_TWO_PARTS = frozenset({"backbone", "head"})
# What scripts call a network whose classifier they put beside it, as a layer of its own.
_BODIES = ("backbone", "encoder", "base_model", "base", "model", "net", "feature_extractor", "trunk")
_LAYER = re.compile(r"[^.]+\.(\d+\.)?(weight|bias)")
# Tensors that take no part in inference, by the last part of their name: thop's counts, AveragedModel's.
NO_WEIGHTS = frozenset({"total_ops", "total_params", "n_averaged"})
# Parts of a Lightning module beside its network, by the first part of their names.
_TRAINING_PARTS = re.compile(r"criterion|loss(_\w+)?|\w+_loss|(train|val|valid|test)_\w+|(\w+_)?(metrics?|acc(uracy)?)")


def without_training_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without those of losses and metrics, which a Lightning module holds beside its network."""
    kept = {name: value for name, value in tensors.items() if not _TRAINING_PARTS.fullmatch(name.partition(".")[0])}
    return kept or dict(tensors)


def strip(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors by their names without what wrappers added, and the prefix that all weights shared."""
    stripped = {_PART_IN_PARALLEL.sub("features.", _WRAPPERS.sub("", name)): value for name, value in tensors.items()}
    whole = ""
    while prefix := _shared_prefix(stripped):
        whole += prefix
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items() if name.startswith(prefix)}
    if {name.partition(".")[0] for name in stripped} == _TWO_PARTS:
        return {name.partition(".")[2]: value for name, value in stripped.items()}, whole
    return _without_body(stripped), whole


def _without_body(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network in two parts without the name of the larger one, where the other is a linear layer."""
    body = next((part for part in _BODIES if any(name.startswith(f"{part}.") for name in tensors)), None)
    beside = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] != body}
    if len({name.rpartition(".")[0] for name in beside}) != 1 or not all(map(_LAYER.fullmatch, beside)):
        return dict(tensors)
    if any(tensor.dim() != 1 + name.endswith("weight") for name, tensor in beside.items()):
        return dict(tensors)
    return {name.removeprefix(f"{body}."): tensor for name, tensor in tensors.items()}


def _shared_prefix(tensors: Mapping[str, Tensor]) -> str:
    """Return the part that the names of all weights begin with, such as `module.` or `model.`; "" where they differ.

    A single layer keeps its name.
    """
    parts = [name.split(".") for name in tensors if name not in NO_WEIGHTS]
    shared = {each[0] for each in parts}
    return f"{shared.pop()}." if len(shared) == 1 and any(len(each) > 2 for each in parts) else ""
