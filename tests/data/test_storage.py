"""Files by URL, on fsspec's file system in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_fixtures import TinyWorkspace, draw, read_folder

from pipeline.data import npz
from pipeline.data.imagenet import list_images
from pipeline.data.sources import scan
from pipeline.data.storage import Url, location, names_in, read_stamps
from pipeline.errors import DataError
from pipeline.measure import bench
from pipeline.measure.load import Load
from pipeline.run.inputs import find_images
from pipeline.run.predict import Classifier
from pipeline.run.results import check_folder
from pipeline.runtimes.base import Runtime

fsspec = pytest.importorskip("fsspec", reason="object stores are read by fsspec: pip install fsspec")


@pytest.fixture
def root() -> Iterator[Url]:
    """An empty folder."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield Url("memory://bucket")
    store.store.clear()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("images/cat.jpg", Path("images/cat.jpg")),
        ("/images", Path("/images")),
        ("C:/images", Path("C:/images")),
        ("file:///images/cat.jpg", Path("/images/cat.jpg")),
        ("s3://bucket/images/", Url("s3://bucket/images")),
        ("s3://bucket", Url("s3://bucket")),
    ],
)
def test_location_is_a_path_or_a_url(text: str, place: Path | Url) -> None:
    assert location(text) == place
    assert location(place) == place


def test_url_has_the_parts_of_a_path() -> None:
    url = Url("s3://bucket/n01/cat.one.jpg")
    assert (url.name, url.stem, url.suffix) == ("cat.one.jpg", "cat.one", ".jpg")
    assert url.parent == Url("s3://bucket/n01")
    assert url.parent / "dog.jpg" == Url("s3://bucket/n01/dog.jpg")


def test_files_are_listed_sorted_with_their_sizes(root: Url) -> None:
    for name, content in (("b/2", b"two"), ("a", b"one"), ("b/c/3", b"three")):
        (root / name).write_bytes(content)
    assert {name: size for name, (size, _) in root.files(deep=True).items()} == {"a": 3, "b/2": 3, "b/c/3": 5}
    assert list(root.files(deep=False)) == ["a"]
    assert names_in(root / "b") == {"2"}
    assert names_in(root / "nothing") == set()
    assert [stamp and stamp[0] for stamp in read_stamps([root / "a", root / "x", Path("/no/such")])] == [3, None, None]
    assert (root / "a").is_file()
    assert (root / "b").is_dir()
    assert (root / "b/c/3").read_bytes(limit=2) == b"th"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://bucket/none", r"^memory://bucket/none: no such file$"),
        ("nosuch://bucket/x", r"^nosuch://bucket/x: cannot be read \(Protocol not known: nosuch"),
    ],
)
def test_url_that_cannot_be_read_is_one_line(root: Url, url: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        Url(url).read_bytes(limit=10)


def test_fsspec_that_is_not_installed_is_one_line(root: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(
        DataError, match=r"^memory://bucket: object stores are read by fsspec.*; run: pip install fsspec$"
    ):
        root.exists()


def test_npz_of_a_url_has_the_bytes_of_a_file(root: Url, tmp_path: Path) -> None:
    for place in (root / "a.npz", tmp_path / "a.npz"):
        npz.write_image_npz(place, draw(0), (123, 456))
    assert (root / "a.npz").read_bytes(1 << 20) == (tmp_path / "a.npz").read_bytes()
    image = npz.read_image_npz(root / "a.npz")
    assert np.array_equal(image, draw(0))
    image[0] = 0  # the caller's
    (root / "b.npz").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"^memory://bucket/b\.npz: not a readable npz file"):
        npz.read_image_npz(root / "b.npz")


def test_image_larger_than_expected_is_not_read(root: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    npz.write_image_npz(root / "a.npz", draw(0))
    monkeypatch.setattr(npz, "MAX_IMAGE_BYTES", 10)
    monkeypatch.setattr(npz, "_MAX_OVERHEAD_BYTES", 10)
    with pytest.raises(DataError, match="more than the 20 bytes expected at most"):
        npz.read_image_npz(root / "a.npz")


def test_datalist_names_urls_that_are_missing(root: Url, tmp_path: Path) -> None:
    npz.write_image_npz(root / "a.npz", draw(0))
    datalist = tmp_path / "list.txt"
    npz.write_datalist(datalist, [root / "a.npz"])
    assert npz.read_datalist(datalist) == [root / "a.npz"]
    npz.write_datalist(datalist, [root / "a.npz", root / "b.npz"])
    with pytest.raises(DataError, match=r"1 of 2 files are missing: memory://bucket/b\.npz \(line 2\)"):
        npz.read_datalist(datalist)


def test_fault_of_a_store_keeps_what_its_client_raised_as_cause(root: Url) -> None:
    with pytest.raises(DataError, match=r"none: no such file$") as caught:
        (root / "none").read_bytes(10)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def save(image: int, place: Url) -> None:
    with fsspec.open(str(place), "wb") as stream:
        Image.fromarray(draw(image).transpose(1, 2, 0)).save(stream, "JPEG")


def test_images_of_a_store_are_listed_without_hidden_ones(root: Url) -> None:
    for name in ("n2/b.JPEG", "n1/a.jpg", "n1/.hidden.jpg", ".trash/x.jpg"):
        save(0, root / name)
    samples = list_images(root)
    assert [sample.key for sample in samples] == ["n1/a", "n2/b"]
    source = samples[0].source
    assert (str(source), source.folder) == ("memory://bucket/n1/a.jpg", "n1")
    assert source.stamp()[0] == len(source.read())
    assert source.content() == source.read()


@pytest.mark.parametrize(
    ("name", "text"), [("images.tar", "a tar is read where it lies on a disk"), ("empty", "no files below it")]
)
def test_what_is_no_folder_of_a_store_is_one_line(root: Url, name: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        scan(root / name)


def test_results_in_a_store_are_those_in_a_folder(root: Url, in_workspace: TinyWorkspace) -> None:
    package, load = in_workspace.package, Load(batch=4, runtime=Runtime.ONNXRUNTIME)
    arguments = package, load, package.preprocess(), in_workspace.datalist
    here, there = in_workspace.root / "out", root / "out"
    assert bench.run_accuracy(*arguments, here) is not None
    assert bench.run_accuracy(*arguments, there) is not None
    written = {name: (there / name).read_bytes(1 << 20) for name in names_in(there)}
    assert written == read_folder(here)
    assert (root / "out.run.json").is_file()
    check_folder(there)

    # Interrupted: it goes on with the two requests that lack a result.
    record = root / "out.run.json"
    record.write_bytes(record.read_bytes(1 << 20).replace(b'"finished": true', b'"finished": false'))
    for name in sorted(written)[3:5]:
        (there / name).unlink()
    figures = bench.run_accuracy(*arguments, there)
    assert figures is not None
    assert figures.images == 8
    assert {name: (there / name).read_bytes(1 << 20) for name in names_in(there)} == written

    (root / "strange/letter.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"memory://bucket/strange: holds files that bench did not write"):
        check_folder(root / "strange")


def test_predict_reads_urls_and_folders_of_them(root: Url, in_workspace: TinyWorkspace, tmp_path: Path) -> None:
    save(0, root / "images/b.jpg")
    npz.write_image_npz(root / "images/a.npz", draw(1))
    (root / "images/notes.txt").write_bytes(b"x")
    places = find_images([root / "images", root / "images/b.jpg"])
    assert [place.name for place in places] == ["a.npz", "b.jpg", "b.jpg"]
    (tmp_path / "b.jpg").write_bytes((root / "images/b.jpg").read_bytes(1 << 20))
    with Classifier(in_workspace.prefix, runtime="onnxruntime") as classifier:
        found = list(classifier.predict([*places, tmp_path / "b.jpg"]))
        (root / "bad.jpg").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"^memory://bucket/bad\.jpg: image of 8 bytes: cannot be decoded"):
            list(classifier.predict([root / "bad.jpg"]))
    assert found[1].source == "memory://bucket/images/b.jpg"
    assert found[1].scores == found[2].scores == found[3].scores
    with pytest.raises(DataError, match=r"^memory://bucket/none: no such file$"):
        find_images([root / "none"])
