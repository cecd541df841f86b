"""The names of the classes that training scripts keep beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Entries of checkpoints: of scripts that follow PyTorch's tutorials, and of OpenMMLab (within `meta`).
_ENTRIES = ("class_to_idx", "idx_to_class", "class_names", "classes", "CLASSES")
_WITHIN = ("meta", "dataset_meta")


def find_class_names(loaded: object, levels: int = len(_WITHIN)) -> tuple[str, ...] | None:
    """Return the names in the order of the network's outputs; None where a checkpoint holds none, or not all.

    Args:
        loaded: the content of a checkpoint.
        levels: of its entries that are looked into.
    """
    if not isinstance(loaded, Mapping):
        return None
    found = (names for entry in _ENTRIES if (names := _in_order(loaded.get(entry))) is not None)
    inner = [loaded.get(entry) for entry in _WITHIN] if levels else []
    within = (names for each in inner if (names := find_class_names(each, levels - 1)) is not None)
    return next(found, None) or next(within, None)


def _in_order(value: object) -> tuple[str, ...] | None:
    if isinstance(value, Mapping):
        pairs = [pair[::-1] if isinstance(pair[0], str) else pair for pair in value.items()]
        numbers = dict(pairs) if all(isinstance(number, int) for number, _ in pairs) else {}
        if len(numbers) < len(pairs) or sorted(numbers) != list(range(len(numbers))):
            return None
        value = [numbers[number] for number in range(len(numbers))]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    return tuple(value) if all(isinstance(name, str) for name in value) else None
