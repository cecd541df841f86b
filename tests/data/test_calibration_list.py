from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from pipeline.data.calibration_list import read_calibration_list, write_calibration_list
from pipeline.data.imagenet import list_dataset, make_sample
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("cat/1.JPEG", "cat/2.JPEG", "dog/1.JPEG"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(name)
    return tmp_path / "set"


def test_read_calibration_list_opens_what_write_listed(images: Path, tmp_path: Path) -> None:
    chosen = list_dataset(images).samples[1:]
    write_calibration_list(chosen, tmp_path / "list.txt", seed=7)
    lines = (tmp_path / "list.txt").read_text().splitlines()
    assert lines[1:4] == [f"# root: {images}", "# count: 2", "# seed: 7"]
    assert lines[5] == "1\tdog/1.JPEG"
    assert read_calibration_list(tmp_path / "list.txt") == list(chosen)
    assert [sample.source.read() for sample in chosen] == [sample.source.name.encode() for sample in chosen]


def test_read_calibration_list_opens_members_of_a_tar(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(images, ".")
    shutil.rmtree(images)
    chosen = list(list_dataset(tmp_path / "set.tar").samples)
    write_calibration_list(chosen, tmp_path / "list.txt")
    assert read_calibration_list(tmp_path / "list.txt") == chosen
    assert chosen[2].source.read() == b"dog/1.JPEG"


def test_read_calibration_list_keeps_unknown_classes(images: Path, tmp_path: Path) -> None:
    samples = [make_sample(ImageSource(images, "cat/1.JPEG"), None)]
    write_calibration_list(samples, tmp_path / "list.txt")
    assert read_calibration_list(tmp_path / "list.txt") == samples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\tcat/1.JPEG\n", "{}: has no '# root:' and '# count:' lines; make it by calibset"),
        ("# root: {root}\n# count: 2\n0\tcat/1.JPEG\n", "{}: cut short, 1 of 2 images; make it again by calibset"),
        (
            "# root: {root}\n# count: 1\ncat/1.JPEG\n",
            "{}:3: expected 'class<TAB>name', found 'cat/1.JPEG'; make it again by calibset",
        ),
        ("# root: {root}\n# count: 1\n0\t../x\n", "{}:3: '../x' leaves the root folder; do not use this list"),
        ("# root: {root}\n# count: 1\n0\t/etc/x\n", "{}:3: '/etc/x' leaves the root folder; do not use this list"),
        (
            "# root: {root}/gone\n# count: 1\n0\tcat/1.JPEG\n",
            "{}: the images' root {root}/gone is gone; bring it back, or make the list again by calibset",
        ),
        (
            "# root: {root}\n# count: 2\n0\tcat/1.JPEG\n0\tcat/9.JPEG\n",
            "{}: 1 of 2 images are not in {root} (first: cat/9.JPEG);"
            " bring them back, or make the list again by calibset",
        ),
    ],
)
def test_read_calibration_list_says_what_is_wrong(images: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text.replace("{root}", str(images)))
    with pytest.raises(DataError) as caught:
        read_calibration_list(path)
    assert str(caught.value) == message.format(path, root=images)
