"""Weights in other tensors than the network's own: pruned, weight-normalised; and an image's normalisation beside them.

Sources: torch.nn.utils.prune (`_orig` times `_mask`), torch.nn.utils.weight_norm and its parametrization (`_g` times
`_v` over its norm).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.models.record_values import Numbers

_PIXEL = 255.0  # the largest value of a pixel

# Names of a tensor's two parts -> how they end; the first is multiplied with what the second becomes.
_PRUNED = re.compile(r"(?P<name>.+)_orig")
_NORMED = (
    (re.compile(r"(?P<name>.+)_g"), "{}_v"),
    (re.compile(r"(?P<at>.*)parametrizations\.(?P<name>[^.]+)\.original0"), "{}.original1"),
)
_STATISTIC = re.compile(r"((?P<at>([^.]+\.){0,2}))(?P<word>(new_|pixel_)?(mean|std))")


@dataclass(frozen=True)
class Normalization:
    """Mean and std of a layer before a network, one number or one for each channel, in whatever unit it has them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_shares(self) -> tuple[Numbers, Numbers] | None:
        """Return mean and std of images of 0 to 1; None where the numbers do not tell the unit.

        A mean of 0 and a std of 1 are of no unit: such a layer does nothing.
        """
        if (set(self.mean), set(self.std)) == ({0.0}, {1.0}):
            return None
        if all(0 <= value <= 1 for value in self.mean) and all(0 < value <= 1 for value in self.std):
            unit = 1.0
        elif all(1 < value <= _PIXEL for value in (*self.mean, *self.std)):
            unit = _PIXEL
        else:
            return None
        # As they were written: float32 has 0.485 as 0.48500001430511475.
        mean, std = (tuple(float(f"{value / unit:.6g}") for value in values) for values in (self.mean, self.std))
        return mean * (3 // len(mean)), std * (3 // len(std))

    def __str__(self) -> str:
        mean, std = (",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean} and std {std}"


def fold(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors with each weight that is kept in two parts as one, and the names of those weights."""
    folded, names = dict(tensors), []
    for first in tensors:
        found = _pruned(tensors, first) or _normed(tensors, first)
        if found is not None:
            second, name, value = found
            del folded[first], folded[second]
            folded[name] = value
            names.append(name)
    return folded, names


def _pruned(tensors: Mapping[str, Tensor], first: str) -> tuple[str, str, Tensor] | None:
    match = _PRUNED.fullmatch(first)
    mask = None if match is None else tensors.get(f"{match['name']}_mask")
    if match is None or mask is None or mask.shape != tensors[first].shape:
        return None
    return f"{match['name']}_mask", match["name"], tensors[first] * mask.to(tensors[first].dtype)


def _normed(tensors: Mapping[str, Tensor], first: str) -> tuple[str, str, Tensor] | None:
    for pattern, second in _NORMED:
        match = pattern.fullmatch(first)
        if match is None:
            continue
        other = second.format(first.rpartition(".original0")[0] or match["name"])
        length, direction = tensors[first], tensors.get(other)
        if direction is None or length.dim() not in (0, direction.dim()):
            return None
        axes = [axis for axis in range(direction.dim()) if length.dim() == 0 or length.shape[axis] == 1]
        name = f"{match.groupdict().get('at') or ''}{match['name']}"
        return other, name, direction * (length / direction.norm(dim=axes, keepdim=True))
    return None


def take_normalization(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Normalization | None]:
    """Return the tensors without the mean and std of a layer that normalises images, and these; None: there is none.

    Such a layer is outside the network: its tensors have a number for each channel and lie at most two levels deep.
    """
    found: dict[str, dict[str, str]] = {}
    for name, tensor in tensors.items():
        match = _STATISTIC.fullmatch(name)
        if match is not None and tensor.numel() in (1, 3) and tensor.is_floating_point():
            found.setdefault(match["at"], {})[match["word"][-4:].strip("_")] = name
    pairs = [pair for pair in found.values() if pair.keys() >= {"mean", "std"}]
    if not pairs:
        return dict(tensors), None
    mean, std = (tuple(map(float, tensors[pairs[0][key]].flatten().tolist())) for key in ("mean", "std"))
    left_out = {name for pair in pairs for name in pair.values()}
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, Normalization(mean, std)
