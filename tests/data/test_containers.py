"""containers.py: what a file of many images is, and what to do with it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.data.containers import describe, describe_first, find_labels
from pipeline.data.imagenet import list_dataset, list_images
from pipeline.errors import DataError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Train.ZIP", "is a zip archive; unpack it"),
        ("train-00000-of-00002.parquet", "is a Parquet or Arrow table"),
        ("data-00000-of-00001.arrow", "is a Parquet or Arrow table"),
        ("a.tfrecord", "is TFRecord; write its images"),
        ("imagenet.tfrecord-00001-of-00128", "is TFRecord; write its images"),
        ("x.h5", "is HDF5; write its images"),
        ("x.npz", "is arrays; write its images"),
        ("train.rec", "is one file of many images"),
        ("t10k-images-idx3-ubyte.gz", "is MNIST's format"),
        ("cifar-10-batches-py/data_batch_1", "is CIFAR's format"),
        ("train.tar.bz2", "is a tar of another compression than gzip; unpack it"),
    ],
)
def test_describe_says_what_a_file_is_by_its_name(name: str, said: str) -> None:
    found = describe(name)
    assert found is not None
    assert found.startswith(said)


@pytest.mark.parametrize("name", ["a.jpg", "notes.txt", "zip", "parquet.txt", "rec", "x.tfrecord.json"])
def test_describe_knows_nothing_of_others(name: str) -> None:
    assert describe(name) is None


def test_describe_first_takes_the_first_by_name() -> None:
    found = describe_first(["readme.md", "b.h5", "a.zip"])
    assert found is not None
    assert found.startswith("a.zip is a zip archive")
    assert describe_first(["readme.md"]) is None


def test_find_labels_finds_those_of_webdataset() -> None:
    assert find_labels(["0.jpg", "0.cls", "a/1.CLS.txt", "class.txt"]) == ["0.cls", "a/1.CLS.txt"]


def test_a_file_or_folder_of_them_is_named_in_the_place_of_images(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train\.parquet: is a Parquet or Arrow table"):
        list_images(tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=r"no images; data/train\.parquet is a Parquet or Arrow table"):
        list_images(tmp_path)


def test_tars_in_a_folder_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0000.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("0.jpg"), io.BytesIO())
    with pytest.raises(DataError, match=r"no images; train-0000\.tar is a tar; give that itself"):
        list_images(tmp_path)


def test_folders_that_lie_too_deep_are_the_reason_where_no_image_is_found(tmp_path: Path) -> None:
    deep = tmp_path / "cat" / "2020" / "12"
    deep.mkdir(parents=True)
    (deep / "0.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no images; 1 folders lie too deep .* \(first: cat/2020/12\)"):
        list_dataset(tmp_path)
