"""Init: the preprocessing that is written into a build file, and where each of its numbers is from."""

from __future__ import annotations

from dataclasses import replace

from pipeline.models.recipe import Recipe
from pipeline.models.record_values import Numbers
from pipeline.onnx_models.input_units import InputUnit
from pipeline.prepare.found_network import FoundNetwork

_MEAN: Numbers = (0.485, 0.456, 0.406)
_STD: Numbers = (0.229, 0.224, 0.225)
_NO_MEAN: Numbers = (0.0, 0.0, 0.0)
# Of a 0..1 image, for networks that normalise it themselves.
_NO_STD: dict[InputUnit, Numbers] = {InputUnit.PIXELS: (1 / 255, 1 / 255, 1 / 255), InputUnit.SHARES: (1.0, 1.0, 1.0)}
_RESIZE = 256 / 224  # shorter side over the crop, as ImageNet's networks are measured


def choose_ops(network: FoundNetwork, mean: Numbers | None, std: Numbers | None) -> tuple[list[dict[str, object]], str]:
    """Return `process_ops`, and a line that says where each of its numbers is from.

    Args:
        mean, std: as given by flags, of a 0..1 image.
    """
    height, width = network.hw
    recipe, said = network.recipe, ""
    flags = [flag for flag, value in (("--mean", mean), ("--std", std)) if value is not None]
    whence = "as given"
    if network.unit is not None and not flags:
        mean, std, whence = _NO_MEAN, _NO_STD[network.unit], "are in the network"
    elif network.own_layer is not None and not flags:
        (mean, std), whence = network.own_layer, "of a layer before the network, in the checkpoint"
    if recipe is None:
        square = height == width
        resize = round(height * _RESIZE) if square else (height, width)
        recipe = Recipe(network.hw, resize, "", mean or _MEAN, std or _STD, "")
        shown = f"Resize {resize}, CenterCrop {height}" if square else f"Resize and CenterCrop [{height}, {width}]"
        if mean is None or std is None:
            # Nothing says what the network was trained with.
            said = f"{shown}, ImageNet's mean and std: change them in the file where the network was trained otherwise"
            said += "" if mean is None and std is None else " (--mean and --std go together)"
        else:
            said = f"{shown}; mean and std {whence}"
    else:
        own = recipe.crop_hw
        recipe = recipe.sized(height) if height == width else replace(recipe, crop_hw=network.hw, resize=network.hw)
        recipe = replace(recipe, mean=mean or recipe.mean, std=std or recipe.std)
        said = f"{recipe}: from {recipe.source}"
        said += "" if own == network.hw else f", whose size is {own[0]}"
        if network.unit is not None and not flags:
            said += "; the network has mean and std itself"
        elif network.own_layer is not None and not flags:
            said += f"; mean and std {whence}"
        said += f"; {' and '.join(flags)} as given" if flags else ""
    ops = recipe.process_ops()
    if not recipe.interpolation:
        del ops[1]["interpolation"]
    return ops, said
