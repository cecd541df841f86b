"""Why a checkpoint does not fit a network, in words, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Parts of names by what trains or stores weights otherwise -> what leaves plain ones.
_OTHERWISE = {
    "lora_": "LoRA's weights are beside the network's; merge them (merge_and_unload() of peft) and save its state dict",
    ".parametrizations.": (
        "weights are parametrized; call remove_parametrizations of torch.nn.utils.parametrize and save the state dict "
        "again"
    ),
    "_orig": (
        "weights are pruned or spectrally normalised; make that permanent (prune.remove, remove_spectral_norm of "
        "torch.nn.utils) and save the state dict again"
    ),
}


@dataclass(frozen=True)
class Entry:
    """The place of a network's tensor in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Misfit:
    """Why a checkpoint does not fit a network, by the names in the file."""

    missing: list[str]
    unexpected: list[str]
    wrong: list[Entry]  # of another shape, as they are wanted
    classes: tuple[int, int] | None  # found and wanted, where only the number of the classifier's rows differs


def describe_faults(misfit: Misfit, state: Mapping[str, Tensor]) -> str:
    faults = []
    if misfit.missing:
        faults.append(f"{len(misfit.missing)} keys missing (first: {misfit.missing[0]})")
    if misfit.unexpected:
        faults.append(f"{len(misfit.unexpected)} unexpected (first: {misfit.unexpected[0]})")
    if misfit.wrong:
        entry = misfit.wrong[0]
        faults.append(
            f"{len(misfit.wrong)} of another shape (first: {entry.name} is {list(state[entry.name].shape)}, "
            f"wanted {list(entry.shape)})"
        )
    return ", ".join(faults)


def advise(misfit: Misfit, classifier: str) -> str:
    """Return what to do with a checkpoint that comes near a network.

    Args:
        classifier: name of the network's last linear layer.
    """
    names = [*misfit.missing, *misfit.unexpected, *(entry.name for entry in misfit.wrong)]
    otherwise = next((advice for mark, advice in _OTHERWISE.items() if any(mark in name for name in names)), None)
    if otherwise is not None:
        return otherwise
    lacks_classifier = bool(misfit.missing) and all(name.startswith(f"{classifier}.") for name in misfit.missing)
    if lacks_classifier and not misfit.wrong:
        if not misfit.unexpected:
            return "it has no classifier; give the checkpoint of the whole network"
        return "its classifier is of other layers; export the network to ONNX and give that file"
    if misfit.wrong:
        return "the network was changed; export it to ONNX and give that file"
    return "save a state dict of the network alone"


def rename_classifier(
    state: Mapping[str, Tensor], names: Mapping[str, tuple[int, ...]], classifier: str
) -> tuple[Mapping[str, Tensor], str | None]:
    """Return the tensors with the classifier's own name where only that differs, and the name that it had, or None.

    `fc = nn.Sequential(nn.Dropout(), nn.Linear(...))` makes `fc.1.weight` of `fc.weight`; others call it `classifier`.

    Args:
        names: of the network's tensors, with their shapes.
        classifier: name of its last linear layer.
    """
    missing = names.keys() - state.keys()
    others = state.keys() - names.keys()
    found = {name.rpartition(".")[0] for name in others}
    if f"{classifier}.weight" not in missing or len(found) != 1:
        return state, None
    (name,) = found
    renamed = {
        f"{name}.{part}": f"{classifier}.{part}" for part in ("weight", "bias") if f"{classifier}.{part}" in names
    }
    weight = state.get(f"{name}.weight")
    if renamed.keys() != others or weight is None or weight.dim() != 2:
        return state, None
    return {renamed.get(key, key): value for key, value in state.items()}, name
