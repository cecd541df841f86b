"""The class names that a config of PaddleClas names: `class_id_map_file`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import DataError
from pipeline.terminal import console


def read_class_map(path: Path | None) -> Mapping[int, str]:
    """Return class names by index, of lines `index name`; none, with a note, where the file is not here.

    Raises:
        DataError: a line has another form.
    """
    if path is None:
        return {}
    if not path.is_file():
        console.note(f"{path} (class_id_map_file) is not here: class names are the package's")
        return {}
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        index, _, name = line.partition(" ")
        if line.strip() and not index.isdecimal():
            raise DataError(f"{path}:{number}: expected an index and a name, got {line[:80]!r}")
        if line.strip():
            names[int(index)] = name
    return names
