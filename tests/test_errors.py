from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import errors
from pipeline.data import preprocess
from pipeline.errors import DataError, first_line, in_a_line, is_our_bug, last_line


def raised_by(function: Callable[..., Any], *arguments: Any) -> Exception:
    try:
        function(*arguments)
    except Exception as err:
        return err
    raise AssertionError("nothing was raised")


def test_is_our_bug_takes_a_wrong_call_in_our_own_lines_only() -> None:
    pixels = np.zeros((3, 4, 4), np.uint8)
    ours = raised_by(preprocess.apply, None, pixels)  # None has no sizes
    assert isinstance(ours, AttributeError)
    assert is_our_bug(ours)
    assert not is_our_bug(ours, except_in=("data",))
    assert not is_our_bug(raised_by(json.loads, None))  # a TypeError, in the library's lines
    assert not is_our_bug(raised_by(preprocess.decode, b"no image"))  # what the user can fix
    assert not is_our_bug(KeyError("never raised"))


def test_decode_lets_our_own_bug_through(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3)).save(stream, "PNG")
    monkeypatch.setattr(preprocess, "_rgb", None)  # so that a line of ours calls what is no function
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        preprocess.decode(stream.getvalue())


def test_decode_keeps_the_cause_of_a_damaged_image() -> None:
    with pytest.raises(DataError) as caught:
        preprocess.decode(b"no image")
    assert type(caught.value.__cause__).__name__ == "UnidentifiedImageError"


@pytest.mark.parametrize(
    ("error", "first", "last", "whole"),
    [
        (ValueError("\n wrong  type\nat 3\n"), "wrong  type", "at 3", "wrong type at 3"),
        (KeyError(), "KeyError", "KeyError", "KeyError"),
        (OSError("x" * 400), "x" * 400, "x" * 400, "x" * 300),
    ],
)
def test_messages_of_libraries_come_in_a_line(error: Exception, first: str, last: str, whole: str) -> None:
    assert (first_line(error), last_line(error), in_a_line(error)) == (first, last, whole)


def test_no_other_module_makes_a_line_of_a_message() -> None:
    """Nor leaves a line empty where a library says nothing."""
    by_hand = re.compile(r"str\((?:err|error)\)(?:\.strip\(\))?\.(?:split|r?partition)\w*\((?:\)|\"\\n\")")
    package = Path(errors.__file__).parent
    modules = [path for path in package.rglob("*.py") if by_hand.search(path.read_text(encoding="utf-8"))]
    assert modules == [package / "errors.py"]
