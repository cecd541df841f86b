"""What a stage sees of the build file, and how that enters the key of its artefact.

Each stage module has a frozen dataclass `Settings` and a function `take_settings` that takes it from the build file.
`run` gets these settings and nothing else of the build file, and the key is made of all of them, so a stage
cannot read what is not in its key. A field that must not enter the key is declared with `unkeyed`.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.artefacts import file_digest, fingerprint
from pipeline.data.sources import scan

_IN_KEY = "key"  # of a field's metadata
_RECENT_NS = 2_000_000_000  # file systems keep times of 1 ns to 2 s


def unkeyed() -> Any:
    """Declare a field outside the key: it changes how a result is computed, not the result. Say why beside it."""
    return field(metadata={_IN_KEY: False})


class Keyed(ABC):
    """A file or folder of the user's, which enters the key by what is in it."""

    path: Path

    @abstractmethod
    def key(self) -> object:
        """Return plain data that changes whenever the content behind the setting does."""


@dataclass(frozen=True)
class InputFile(Keyed):
    """A file of the user's. It enters the key by its content, not by path or date."""

    path: Path
    parts: tuple[Path, ...] = ()  # other files that belong to it, such as the external data of an ONNX file

    def key(self) -> object:
        return [_digest(path) for path in (self.path, *self.parts)]


def _digest(path: Path) -> str:
    """Return the sha256 of a file, which a build asks for three times, without reading one again that did not change.

    As git does, it takes one for unchanged whose size and times are the same, unless they are so recent that a change
    might not show.
    """
    found = path.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _RECENT_NS:
        return file_digest(path)
    return _digest_of(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@functools.lru_cache(maxsize=64)
def _digest_of(path: Path, stamp: tuple[int, ...]) -> str:
    return file_digest(path)


@dataclass(frozen=True)
class ImageTree(Keyed):
    """A folder or tar of images. It enters the key by its path and by name, size and time of each file.

    Reading 150 GB of images to learn that nothing changed would take longer than the build. The calibration images that
    were chosen enter the later stages by content.
    """

    path: Path

    def key(self) -> object:
        return [str(self.path), fingerprint([[file.name, *file.stamp()] for file in scan(self.path).files])]


def settings_key(settings: object) -> object:
    """Return the plain data of a stage's settings, for `artefacts.fingerprint`.

    Raises:
        TypeError: a setting that is no plain data, such as a bare path; `InputFile` says how a file counts.
    """
    if isinstance(settings, Keyed):
        return settings.key()
    if is_dataclass(settings) and not isinstance(settings, type):
        return {
            item.name: settings_key(getattr(settings, item.name))
            for item in fields(settings)
            if item.metadata.get(_IN_KEY, True)
        }
    if isinstance(settings, Enum):
        return settings_key(settings.value)
    if isinstance(settings, Mapping):
        return {str(name): settings_key(value) for name, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [settings_key(value) for value in settings]
    if settings is None or isinstance(settings, (bool, int, float, str)):
        return settings
    raise TypeError(f"{type(settings).__name__} cannot enter the key of a stage")


def input_paths(settings: object) -> str:
    """Return the user's files and folders that a stage's settings name, separated by commas."""
    assert is_dataclass(settings) and not isinstance(settings, type)
    given = [getattr(settings, item.name) for item in fields(settings)]
    return ", ".join(str(each.path) for each in given if isinstance(each, Keyed))
