"""class_map.py: names of classes by index."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.class_map import read_class_map
from pipeline.errors import DataError


def test_names_are_by_index_and_may_hold_spaces(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("7 cock\n\n80 black grouse, Lyrurus tetrix\n", encoding="utf-8")
    assert read_class_map(path) == {7: "cock", 80: "black grouse, Lyrurus tetrix"}


def test_no_file_gives_no_names_and_is_said_where_one_was_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_class_map(None) == {}
    assert capsys.readouterr().err == ""
    assert read_class_map(tmp_path / "none.txt") == {}
    assert "none.txt (class_id_map_file) is not here: class names are the package's" in capsys.readouterr().err


def test_a_line_without_an_index_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("7 cock\nhen\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.txt:2: expected an index and a name, got 'hen'"):
        read_class_map(path)
