"""label_tables.py: tables of labels that lie with images, as data sets of every origin have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.imagenet import list_dataset, list_images
from pipeline.data.label_tables import LabelTable, find_table, label_lines, misfit
from pipeline.errors import DataError

NAMES = ("a.jpg", "b.jpg", "c 1.jpg")


def folder(path: Path, names: Sequence[str] = NAMES) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path / name)
    return path


def found(path: Path) -> LabelTable | None:
    return find_table(path, list_images(path))


@pytest.mark.parametrize(
    ("place", "text", "column"),
    [
        ("set/metadata.csv", "file_name,label\na.jpg,cat\nb.jpg,dog\nc 1.jpg,cat\n", "label"),
        ("set/metadata.csv", "\ufefffile_name,label\r\na.jpg,cat\r\nb.jpg,dog\r\nc 1.jpg,cat\r\n", "label"),
        ("set/Labels.CSV", 'width,Image Name,Class\n8,./a.jpg,cat\n8,"b.jpg",dog\n8,c 1.jpg,cat\n', "Class"),
        ("train.csv", "id;breed\na;cat\nb;dog\nc 1;cat\n", "breed"),
        ("set.csv", "image,what\nset/a.jpg,cat\nset/b.jpg,dog\nset/c 1.jpg,cat\n", "what"),
        ("labels.tsv", "file\tcategory\nset\\a.jpg\tcat\nset\\b.jpg\tdog\nset\\c 1.jpg\tcat\n", "category"),
        (
            "set/metadata.jsonl",
            "".join(
                json.dumps({"file_name": name, "objects": {"bbox": [1]}, "label": label}) + "\n"
                for name, label in zip(NAMES, ("cat", "dog", "cat"), strict=True)
            ),
            "label",
        ),
    ],
)
def test_find_table_reads_the_labels_of_all_images(tmp_path: Path, place: str, text: str, column: str) -> None:
    path = folder(tmp_path / "set")
    (tmp_path / place).write_text(text, encoding="utf-8", newline="")
    table = found(path)
    assert table is not None and table.column == column
    assert table.label_of == {"a.jpg": "cat", "b.jpg": "dog", "c 1.jpg": "cat"}
    lines, names = label_lines(table, None)
    assert (names, lines) == (["cat", "dog"], ["cat/a.jpg 0\n", "dog/b.jpg 1\n", "cat/c 1.jpg 0\n"])


def test_find_table_takes_the_one_that_names_most_images(tmp_path: Path) -> None:
    path = folder(tmp_path / "set")
    (path / "few.csv").write_text("file,label\na.jpg,1\nb.jpg,1\n", encoding="utf-8")
    (path / "results.csv").write_text("epoch,loss\n1,0.5\n", encoding="utf-8")
    (path / "all.csv").write_text("file,label\na.jpg,0\nb.jpg,1\nc 1.jpg,2\n", encoding="utf-8")
    table = found(path)
    assert table is not None and Path(str(table.file)).name == "all.csv"
    assert label_lines(table, None) == (["a.jpg 0\n", "b.jpg 1\n", "c 1.jpg 2\n"], [])


@pytest.mark.parametrize(
    "text", ["epoch,loss\n1,0.5\n", "file,label\nz.jpg,1\n", "", "\x00\x00", "file,label\na.jpg,1\n"]
)
def test_find_table_finds_none_where_none_names_half_of_the_images(tmp_path: Path, text: str) -> None:
    path = folder(tmp_path / "set")
    (path / "table.csv").write_text(text, encoding="utf-8")
    assert found(path) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("file,width,height\na.jpg,8,8\nb.jpg,8,8\nc 1.jpg,8,8\n", "has no column label, labels, class, class_name"),
        ("file,width\na.jpg,8\nb.jpg,9\nc 1.jpg,8\n", "has no column label, labels, class, class_name"),
        ("file,score\na.jpg,0.5\nb.jpg,.25\nc 1.jpg,-1\n", "has no column label, labels, class, class_name"),
        ("file,label\na.jpg,cat\nb.jpg,dog\na.jpg,dog\n", "gives a.jpg several labels"),
    ],
)
def test_find_table_says_why_it_takes_no_labels_of_one(tmp_path: Path, text: str, fault: str) -> None:
    path = folder(tmp_path / "set")
    (path / "metadata.csv").write_text(text, encoding="utf-8")
    table = found(path)
    assert table is not None and not table.label_of
    assert table.fault.startswith(fault)


def test_label_lines_keep_folders_that_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", ("x/1.jpg", "y/1.jpg"))
    (path / "metadata.csv").write_text("file_name,label\nx/1.jpg,dog\ny/1.jpg,cat\n", encoding="utf-8")
    table = found(path)
    assert table is not None
    lines, names = label_lines(table, None)
    assert (names, lines) == (["cat", "dog"], ["x/1.jpg 1\n", "y/1.jpg 0\n"])


def test_label_lines_follow_the_order_of_the_network_when_it_has_these_classes(tmp_path: Path) -> None:
    table = LabelTable(tmp_path, "label", {"a.jpg": "cat", "b.jpg": "dog"})
    assert label_lines(table, ["dog", "cat"])[0] == ["cat/a.jpg 1\n", "dog/b.jpg 0\n"]
    assert label_lines(table, ["hen", "cat"])[0] == ["cat/a.jpg 0\n", "dog/b.jpg 1\n"]


@pytest.mark.parametrize(
    ("labels", "classes", "fault"),
    [
        (("cat", "dog"), 2, ""),
        (("cat", "dog"), None, ""),
        (("cat", "dog"), 3, "holds 2 names"),
        (("0", "1"), 5, ""),
        (("1", "2"), 2, "counts up to 2, and indices count from 0"),
    ],
)
def test_misfit_compares_labels_with_the_classes(
    tmp_path: Path, labels: tuple[str, str], classes: int | None, fault: str
) -> None:
    table = LabelTable(tmp_path, "label", dict(zip(("a.jpg", "b.jpg"), labels, strict=True)))
    assert misfit(table, classes) == fault


def test_list_dataset_names_a_table_where_labels_are_missing(tmp_path: Path) -> None:
    path = folder(tmp_path / "set")
    (path / "metadata.csv").write_text("file_name,label\na.jpg,cat\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"; of metadata\.csv, init --dataset makes one$"):
        list_dataset(path)
