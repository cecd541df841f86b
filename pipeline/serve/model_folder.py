"""A folder of packages to serve: what is in it, by name and version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pipeline.artefacts import MANIFEST
from pipeline.errors import ArtefactError
from pipeline.packages.package import FACTS

Files: TypeAlias = tuple[tuple[str, int, int], ...]
FIRST = "1"  # the version of a package that lies in no folder of versions


@dataclass(frozen=True)
class Found:
    """A package in the folder. It is not verified yet."""

    name: str
    version: str  # a whole number
    folder: Path
    stamp: tuple[int, int, int]  # changes when the package is replaced
    files: Files = field(default=(), compare=False)  # changes while it is written


def find_packages(root: Path) -> list[Found]:
    """Return the packages of a folder: `ROOT/PACKAGE` is version 1 of its model, `ROOT/ANY/N` is version N.

    Hidden folders are skipped: an unfinished copy lies in one. The order is that of names and versions; of two packages
    of one name and version the first path counts.

    Raises:
        ArtefactError: there is no such folder.
    """
    if not root.is_dir():
        raise ArtefactError(f"--models {root}: no such folder")
    below = [found for folder in _children(root) for found in _packages_below(folder)]
    return sorted(below, key=lambda each: (each.name, int(each.version)))


def find_package(folder: Path) -> list[Found]:
    """Return one package as version 1 of its model; none where it is not there."""
    found = _look(folder, FIRST)
    return [] if found is None else [found]


def is_version(name: str) -> bool:
    """Tell whether a folder's name is a version: a whole number of at least 1, without zeros before it."""
    return name.isascii() and name.isdigit() and len(name) <= 18 and not name.startswith("0")


def _packages_below(folder: Path) -> Iterator[Found]:
    found = _look(folder, FIRST)
    if found is not None:
        yield found
        return
    for below in _children(folder):
        if is_version(below.name) and (version := _look(below, below.name)) is not None:
            yield version


def _look(folder: Path, version: str) -> Found | None:
    manifest = folder / MANIFEST
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        state = manifest.stat()
        stamp = (state.st_ino, state.st_size, state.st_mtime_ns)
        return Found(str(facts["name"]), version, folder, stamp, _files(folder))
    except (OSError, ValueError, KeyError, TypeError):  # no package, or one that is being copied
        return None


def _files(folder: Path) -> Files:
    """Return name, size and time of change of each file."""
    found = ((each.name, each.stat()) for each in sorted(folder.iterdir()) if each.is_file())
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in found)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:  # removed meanwhile
        return []
