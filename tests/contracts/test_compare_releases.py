"""The list that `make newest` prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("compare_releases", Path(__file__).with_name("compare_releases.py"))
assert SPEC is not None
assert SPEC.loader is not None
compare_releases = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compare_releases)


def test_compare_names_what_changed_and_what_has_no_pin() -> None:
    lines = ["# made on Python 3.11", 'ast_serialize==0.13.1; python_version >= "3.11"']
    pins = "\n".join([*lines, "numpy==2.4.6", "torch==2.13.0", "ray==2.60", ""])
    installed = {"ast-serialize": "0.14", "numpy": "2.4.6", "torch": "2.13.0+cpu", "timm": "1.0.31"}
    assert compare_releases.compare(pins, installed) == [
        "1 of 3 pinned packages have another release:",
        "  ast-serialize 0.13.1 -> 0.14",
        "not pinned: timm 1.0.31",
    ]
