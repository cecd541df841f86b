"""Completion on the command line, by argcomplete where it is installed.

    eval "$(register-python-argcomplete int8-pipeline)"

completes commands and flags, build files, and the keys and values of `--set`.
"""

from __future__ import annotations

import argparse
import os
from typing import Any


def offer(parser: argparse.ArgumentParser) -> None:
    """Complete and exit if the shell asks for completions; return otherwise."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    for command in _commands(parser).values():
        for action in command._actions:
            if action.dest == "set":
                action.completer = _overrides  # type: ignore[attr-defined]
            elif action.dest == "config":
                action.completer = _build_files  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action.choices, dict))


def _overrides(prefix: str, **_: Any) -> list[str]:
    from pipeline.config import json_schema

    key, equals, _value = prefix.partition("=")
    if equals:
        return [f"{key}={value}" for value in json_schema.values(key)]
    return [f"{known}=" for known in json_schema.key_names()]


def _build_files(prefix: str, **_: Any) -> list[str]:
    from pathlib import Path

    from pipeline.config.build_file import BUILD_FOLDER
    from pipeline.config.documents import data_folders

    here = [str(path) for path in Path().glob(f"{prefix}*") if path.suffix == ".yaml" or path.is_dir()]
    return here + [path.name for folder in data_folders(BUILD_FOLDER) for path in folder.glob("*.yaml")]
