"""What a package was built from: the network and the checkpoint of its build file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artefacts
from pipeline.config.paddleclas import INFERENCE
from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.packages.package import BUILD_FILE, DEFAULT_WORKSPACE, Package, open_package, packages_in

_PADDLECLAS = "paddleclas"


@dataclass(frozen=True)
class Origin:
    """A network by its library and name; None where the build file gave only a graph."""

    library: str
    network: str | None
    checkpoint: Path | None  # as the build file has it; None: sample weights


def origin_of(folder: Path) -> Origin | None:
    """Return what the package in a folder was built from; None where its build file was not kept."""
    path = folder / BUILD_FILE
    if not path.is_file():
        return None
    built: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    frontend = built.get("frontend", {})
    library, network = str(frontend.get("type")), frontend.get("model")
    checkpoint = None if frontend.get("checkpoint") is None else Path(frontend["checkpoint"])
    if library == "paddle" and checkpoint is not None:
        library, network = _PADDLECLAS, checkpoint.name.partition(".")[0].removesuffix(INFERENCE)
    return Origin(library, network, checkpoint)


def find_packages_of(network: str) -> list[Path]:
    """Return the folders of all packages of one of PaddleClas's networks under deploy_weights/, the newest last."""
    found = [
        folder
        for folder in packages_in(DEFAULT_WORKSPACE)
        if (origin := origin_of(folder)) is not None and (origin.library, origin.network) == (_PADDLECLAS, network)
    ]
    return sorted(found, key=lambda folder: (folder / artefacts.MANIFEST).stat().st_mtime)


def open_package_of(network: str, where: str = "--model_name") -> Package:
    """Return the package of one of PaddleClas's networks that was built last under deploy_weights/.

    Args:
        where: the flag or argument that gave the name, for errors.

    Raises:
        ConfigError: PaddleClas has no such network, or no package of it is there.
        ArtefactError: as `open_package`.
    """
    zoo.find_model(_PADDLECLAS, network, where)
    found = find_packages_of(network)
    if not found:
        raise ConfigError(
            f"{where} {network}: no package of it in {DEFAULT_WORKSPACE}/; build one: python -m pipeline build "
            f"{build_file_of(network)} --weights {network}_pretrained.pdparams --dataset DIR"
        )
    return open_package(found[-1])


def compare_weights(package: Package, weights: Path | None) -> str | None:
    """Return a note where a package was not built from the weights that a config names; None: it was, or none are."""
    origin = origin_of(package.folder)
    if weights is None or origin is None:
        return None
    if origin.checkpoint is not None and origin.checkpoint.resolve() == weights.resolve():
        return None
    made = "sample weights" if origin.checkpoint is None else str(origin.checkpoint)
    return f"{package.prefix} was built from {made}, not from {weights}"


def build_file_of(network: str) -> str:
    """Return the name of the shipped build file of one of PaddleClas's networks."""
    return "ppcls_resnet.yaml" if network == "ResNet50" else f"ppcls_{network.lower()}.yaml"
