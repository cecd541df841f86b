"""The user's cache folder, outside any workspace: downloads, and the best load of each package on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import ConfigError

FOLDER_VARIABLE = "INT8_PIPELINE_CACHE"


def cache_folder() -> Path:
    """Return $INT8_PIPELINE_CACHE, or the folder for this program in the user's cache; it need not exist yet."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG standard says to ignore a relative path.
        return (Path(shared) if shared.startswith("/") else Path.home() / ".cache") / "int8-pipeline"
    except RuntimeError:
        raise ConfigError(f"{FOLDER_VARIABLE}: there is no home folder to keep files in; name one") from None
