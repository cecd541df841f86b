"""The version of this program."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

NAME = "int8-classifier-pipeline"


def version() -> str:
    """Return the version: of the clone that runs, else of the installed package."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        content = project.read_text(encoding="utf-8")
        found = re.search(r'^version = "([^"]+)"$', content, re.MULTILINE)
        if found and f'name = "{NAME}"' in content:
            return found[1]
    return metadata.version(NAME)
