"""The folder for what is kept for the user beyond any workspace: downloads, and how packages run best here."""

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
        # A relative path there is to be ignored, says the XDG standard.
        return (Path(shared) if shared.startswith("/") else Path.home() / ".cache") / "int8-pipeline"
    except RuntimeError:
        raise ConfigError(f"{FOLDER_VARIABLE}: there is no home folder to keep files in; name one") from None
