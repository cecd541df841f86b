"""Networks of an installed library, timm or torchvision: any name that it has, its weights, and its record of both.

Neither is needed for the networks that are built here. torch is imported when a network is made.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artefacts import whole_file
from pipeline.errors import ConfigError, DataError, first_line
from pipeline.host.extras import install_command
from pipeline.models.recipe import Recipe, of_timm

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("timm", "torchvision")
_NEAR = 3  # names that an unknown one is compared with
# Branches of training, which torchvision's published weights hold and others need not.
AUXILIARY = ("aux1", "aux2", "AuxLogits")


def is_installed(library: str) -> bool:
    """Tell whether the library is here; nothing is imported."""
    return library in LIBRARIES and importlib.util.find_spec(library) is not None


def version_of(library: str) -> str:
    return metadata.version(library)


def load(library: str) -> Any:
    """Import an installed library and return its module.

    Raises:
        ConfigError: it does not import, as where torchvision was built for another torch.
    """
    try:
        with _quiet():
            return importlib.import_module(library)
    except Exception as err:  # compiled parts that do not fit torch fail in their own ways
        raise ConfigError(
            f"{library} {version_of(library)} is installed but does not import ({first_line(err)}); most often its "
            f"torchvision is of another torch: run pip uninstall -y torchvision, then {install_command(library)}"
        ) from None


def check(library: str, name: str, where: str) -> None:
    """Find a network by its name.

    Args:
        name: as the library spells it; with timm also `architecture.tag`, with torchvision `name.WEIGHTS`.
        where: the key or flag that gave it, for errors.

    Raises:
        ConfigError: the library is not installed, or has no such network.
    """
    if not is_installed(library):
        raise ConfigError(f"{where}: {name!r} needs {library} itself; run: {install_command(library)}")
    architecture, _, tag = name.partition(".")
    if architecture not in names_of(library):
        near = difflib.get_close_matches(architecture, names_of(library), n=_NEAR)
        hint = f"did you mean {', '.join(near)}?" if near else f"{library}.list_models() lists them"
        raise ConfigError(f"{where}: {library} {version_of(library)} has no network {name!r}; {hint}")
    if tag and tag not in tags_of(library, architecture):
        known = ", ".join(tags_of(library, architecture)) or "none"
        raise ConfigError(f"{where}: {library} has no weights {tag!r} of {architecture}; it has {known}")


def names_of(library: str) -> list[str]:
    """Return the names of all classifiers of an installed library, without tags."""
    with _quiet():
        if library == "timm":
            return list(load("timm").list_models())
        models = load("torchvision").models
        return list(models.list_models(module=models))


def relatives(library: str, names: Iterable[str]) -> list[str]:
    """Return the networks of the families of some of timm's; of torchvision none, whose names tell what they are."""
    if library != "timm":
        return []
    import timm

    is_in, wanted = timm.models.is_model_in_modules, list(names)
    modules = [module for module in timm.list_modules() if any(is_in(name, {module}) for name in wanted)]
    return [each for module in modules for each in timm.list_models(module=module)]


def tags_of(library: str, architecture: str) -> list[str]:
    """Return the names of the published weights of a network, the library's choice first."""
    with _quiet():
        if library == "timm":
            timm = load("timm")
            tagged = timm.list_pretrained(f"{architecture}.*")
            default = timm.models.get_pretrained_cfg(architecture)
            named = [name.partition(".")[2] for name in tagged]
            first = [default.tag] if default is not None and default.tag in named else []
            return [*dict.fromkeys([*first, *named])]
        weights = _torchvision_weights(architecture)
        return [*dict.fromkeys([weights.DEFAULT.name, *(each.name for each in weights)])] if list(weights) else []


def _torchvision_weights(architecture: str) -> Any:
    return load("torchvision").models.get_model_weights(architecture)


def recipe(library: str, name: str) -> Recipe:
    """Return how the library prepares images for a network, as recorded with its weights.

    Raises:
        ConfigError: it has no record, or one that build files cannot say.
    """
    architecture, _, tag = name.partition(".")
    if library == "timm":
        with _quiet():
            found = load("timm").models.get_pretrained_cfg(name)
        if found is None:
            raise ConfigError(f"timm has no record of how images are prepared for {name}")
        tagged = (
            f"{architecture}.{found.tag}" if found.tag and found.tag in tags_of(library, architecture) else architecture
        )
        return of_timm(found.to_dict(), f"timm's record of {tagged}")
    tags = tags_of(library, architecture)
    if not tags:
        raise ConfigError(f"torchvision has no record of how images are prepared for {name}")
    weights = _torchvision_weights(architecture)[tag or tags[0]]
    return _of_preset(weights.transforms(), f"torchvision's record of {architecture}.{weights.name}", weights)


def _of_preset(preset: Any, source: str, weights: Any) -> Recipe:
    """Return the recipe of torchvision's ImageClassification preset."""
    resize, crop = list(preset.resize_size), list(preset.crop_size)
    return Recipe(
        crop_hw=(crop[0], crop[-1]),
        resize=int(resize[0]) if len(resize) == 1 else (int(resize[0]), int(resize[1])),
        interpolation=f"{preset.interpolation.name}_PILLOW",
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        source=source,
        classes=len(weights.meta.get("categories", ())) or None,
    )


def tag_of_file(library: str, architecture: str, path: Path) -> str | None:
    """Return which published weights of a network a file is by its name; None where no name tells it."""
    if library == "torchvision":
        found = [each.name for each in _torchvision_weights(architecture) if Path(each.url).name == path.name]
    else:
        timm = load("timm")
        tags = tags_of(library, architecture)
        records = {tag: timm.models.get_pretrained_cfg(f"{architecture}.{tag}") for tag in tags}
        found = [
            tag
            for tag, record in records.items()
            if f"{architecture}.{tag}" in str(path) or (record.url and Path(record.url).name == path.name)
        ]
    return found[0] if len(found) == 1 else None


def build(library: str, name: str, num_classes: int, hw: tuple[int, int] | None = None) -> nn.Module:
    """Return a network in evaluation mode, with the weights that the library starts with.

    Args:
        hw: height and width of the input; None: the network's usual.

    Raises:
        ConfigError: the library cannot make it so.
    """
    architecture = name.partition(".")[0]
    try:
        with _quiet():
            network: nn.Module = (_build_timm if library == "timm" else _build_torchvision)(
                name if library == "timm" else architecture, num_classes, hw
            )
    except Exception as err:  # each network checks its own arguments
        raise ConfigError(f"{library} does not make {name} for {num_classes} classes ({first_line(err)})") from None
    return network.eval()


def _build_timm(name: str, num_classes: int, hw: tuple[int, int] | None) -> Any:
    timm = load("timm")
    record = timm.models.get_pretrained_cfg(name)
    usual = tuple(record.input_size[1:]) if record is not None else (224, 224)
    if hw is not None and hw != usual:
        try:  # networks whose position embeddings have a size
            return timm.create_model(name, num_classes=num_classes, exportable=True, img_size=hw)
        except TypeError:
            pass
    return timm.create_model(name, num_classes=num_classes, exportable=True)


def _build_torchvision(name: str, num_classes: int, hw: tuple[int, int] | None) -> Any:
    models = load("torchvision").models
    more: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):  # as with published weights: they expect normalisation to [-1, 1]
        more = {"init_weights": False, "transform_input": True}
    if hw is not None and hw != (224, 224) and name.startswith("vit_"):
        more["image_size"] = hw[0]
    return models.get_model(name, weights=None, num_classes=num_classes, **more)


def drop_auxiliary(network: Any, names: Iterable[str]) -> None:
    """Take branches of training away from a network where a state dict of these names has no weights for them."""
    present = set(names)
    for branch in AUXILIARY:
        if getattr(network, branch, None) is not None and not any(name.startswith(f"{branch}.") for name in present):
            setattr(network, branch, None)
            network.aux_logits = False


def fuse(network: nn.Module) -> nn.Module:
    """Return a loaded network as it is meant to run: timm's parallel branches of training become one convolution."""
    if importlib.util.find_spec("timm") is None:
        return network
    fused: nn.Module = load("timm").utils.reparameterize_model(network)
    return fused.eval()


def weights_file(library: str, name: str, folder: Path) -> Path:
    """Return where `fetch` puts the published weights of a network."""
    architecture, _, tag = name.partition(".")
    tags = tags_of(library, architecture)
    return folder / f"{architecture}.{tag or (tags[0] if tags else 'none')}.pth"


def fetch(library: str, name: str, folder: Path) -> Path:
    """Return the published weights as a state dict in `folder`, fetched by the library's own loader if need be.

    Raises:
        DataError: there are none, or they cannot be fetched or written.
    """
    target = weights_file(library, name, folder)
    if target.is_file():
        return target
    import torch

    architecture, _, tag = name.partition(".")
    tags = tags_of(library, architecture)
    if not tags:
        raise DataError(f"{library} publishes no weights of {name}; give a file")
    try:
        with _quiet():
            if library == "timm":
                state = load("timm").create_model(name, pretrained=True).state_dict()
            else:
                state = _torchvision_weights(architecture)[tag or tags[0]].get_state_dict(check_hash=True)
    except Exception as err:  # of networks, hubs and hashes
        raise DataError(
            f"{library} cannot fetch the weights of {name} ({first_line(err)}); check the network, or download them by "
            "hand and give the file as the weights"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as scratch:
            torch.save(state, scratch)
    except OSError as err:
        raise DataError(f"{target}: cannot be written ({err.strerror})") from None
    return target


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the libraries warn of: names that changed, downloads without a token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
