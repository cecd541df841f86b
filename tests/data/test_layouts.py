"""ImageNet in every layout that it is found in: one and the same labelled images for calibration and evaluation."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_fixtures import read_local_datalist

from pipeline.data.conversion import convert
from pipeline.data.ground_truth import find_ground_truth
from pipeline.data.imagenet import imagenet_classes, list_dataset, read_label_list
from pipeline.data.labels import validation_label
from pipeline.errors import DataError
from pipeline.stages.calibset import choose

REPOSITORY = Path(__file__).parents[2]
DEVKIT = REPOSITORY.parent / "shared" / "data" / "labels" / "ILSVRC2012_validation_ground_truth.txt"

STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 7)]
TRUTH = {stem: validation_label(stem) for stem in STEMS}
WNIDS = {stem: imagenet_classes()[TRUTH[stem] or 0].id for stem in STEMS}

Layout = tuple[Path, "Path | None"]  # what --dataset names, and --val_label


def jpeg(stem: str) -> bytes:
    """A file of 12x10 px."""
    pixels = np.random.default_rng(int(stem[-3:])).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def fill(folder: Path, name: Callable[[str], str]) -> Path:
    for stem in STEMS:
        path = folder / name(stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(stem))
    return folder


def tar_of(folder: Path, path: Path) -> Path:
    """Pack the files of a folder under their names alone, as the published tars have them."""
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return path


def class_folders(root: Path) -> Layout:
    return fill(root / "any_name", lambda stem: f"{WNIDS[stem]}/{stem}.JPEG"), None


def flat(root: Path) -> Layout:
    return fill(root / "ILSVRC2012_img_val", lambda stem: f"{stem}.JPEG"), None


def renamed_with_val_label(root: Path) -> Layout:
    """Names that nobody knows: the list alone has the labels."""
    folder = fill(root / "ImageNet" / "val", lambda stem: f"{stem[-8:]}.JPEG")
    (folder.parent / "val_label.txt").write_text("".join(f"{stem[-8:]}.JPEG {TRUTH[stem]}\n" for stem in STEMS))
    return folder, None


def paddleclas_val(root: Path) -> Layout:
    folder = fill(root / "ILSVRC2012" / "val", lambda stem: f"{stem}.JPEG")
    (folder.parent / "train_list.txt").write_text("train/n01440764/n01440764_10026.JPEG 0\n")
    (folder.parent / "val_list.txt").write_text("".join(f"val/{stem}.JPEG {TRUTH[stem]}\n" for stem in STEMS))
    return folder, None


def paddleclas_train(root: Path) -> Layout:
    folder = fill(root / "ILSVRC2012" / "train", lambda stem: f"{WNIDS[stem]}/{stem}.JPEG")
    labels = folder.parent / "train_list.txt"
    labels.write_text("".join(f"train/{WNIDS[stem]}/{stem}.JPEG {TRUTH[stem]}\n" for stem in STEMS))
    return folder, labels


def validation_tar(root: Path) -> Layout:
    return tar_of(flat(root)[0], root / "ILSVRC2012_img_val.tar"), None


def training_tar(root: Path) -> Layout:
    """A tar of tars, one per class."""
    folder = class_folders(root)[0]
    tars = root / "tars"
    tars.mkdir()
    for wnid in sorted(folder.iterdir()):
        tar_of(wnid, tars / f"{wnid.name}.tar")
    return tar_of(tars, root / "ILSVRC2012_img_train.tar"), None


def sorted_by_valprep(root: Path) -> Layout:
    folder = flat(root)[0]
    for _ in range(2):
        subprocess.run(["sh", str(REPOSITORY / "data_prep" / "valprep.sh"), str(folder)], check=True)
    assert {path.parent.name for path in folder.rglob("*.JPEG")} == set(WNIDS.values())
    return folder, None


LAYOUTS = (
    class_folders,
    flat,
    renamed_with_val_label,
    paddleclas_val,
    paddleclas_train,
    validation_tar,
    training_tar,
    sorted_by_valprep,
)


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    found: Layout = request.param(tmp_path)
    return found


def whole_stem(name: str) -> str:
    return f"ILSVRC2012_val_{name[-8:]}"


def test_calibration_images_have_their_classes_in_every_layout(layout: Layout) -> None:
    path, val_label = layout
    dataset = list_dataset(path, val_label=val_label)
    assert {whole_stem(sample.name): sample.class_index for sample in dataset.samples} == TRUTH
    assert dataset.classes == imagenet_classes()
    chosen = choose(dataset, 4, cover_classes=False)
    assert [sample.source.read() for sample in chosen] == [jpeg(whole_stem(sample.name)) for sample in chosen]
    with pytest.raises(DataError, match=r"get_data_num 6 is less than the 1000 classes"):
        choose(dataset, 6)


def test_evaluation_images_have_their_classes_in_every_layout(layout: Layout, tmp_path: Path) -> None:
    path, val_label = layout
    report = convert(path, tmp_path / "npz", tmp_path / "npz_datalist.txt", workers=1)
    assert report.converted == len(STEMS)
    images = read_local_datalist(report.datalist)
    if path.name == "val" and path.parent.name == "ImageNet":
        with pytest.raises(DataError, match="6 of 6 samples have no ground truth"):
            find_ground_truth(images, imagenet_classes())
        val_label = path.parent / "val_label.txt"
    truth = find_ground_truth(images, imagenet_classes(), val_label)
    assert {whole_stem(key): index for key, index in truth.items()} == TRUTH


def test_paddleclas_root_asks_for_a_split_when_it_holds_both(tmp_path: Path) -> None:
    paddleclas_val(tmp_path)
    root = paddleclas_train(tmp_path)[0].parent
    with pytest.raises(DataError, match="holds train and val; give one of them"):
        list_dataset(root)


@pytest.mark.slow
def test_devkit_ground_truth_labels_the_flat_folder_whatever_its_numbering(tmp_path: Path) -> None:
    numbering = list(range(1, 1001))
    random.Random(0).shuffle(numbering)
    stems = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 50_001)]
    truth = {stem: validation_label(stem) or 0 for stem in stems}
    lines = [f"{numbering[index]}\n" for index in truth.values()]
    path = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(lines))
    assert read_label_list(path, 1000) == truth
    npz = [tmp_path / "flat" / f"{stem}.npz" for stem in STEMS]
    assert list(find_ground_truth(npz, imagenet_classes(), path).values()) == list(TRUTH.values())
    for wrong in (lines[:-1], [*lines[:-1], "1001\n"], lines[::-1], ["490\n"]):
        path.write_text("".join(wrong))
        with pytest.raises(DataError) as caught:
            read_label_list(path)
        assert str(caught.value) == (
            f"{path}:1: expected 'name index', found {wrong[0].strip()!r}; numbers alone are understood only in the "
            "whole ILSVRC2012_validation_ground_truth.txt"
        )


@pytest.mark.realdata
@pytest.mark.skipif(not DEVKIT.is_file(), reason=f"{DEVKIT} is not there")
def test_devkit_ground_truth_equals_the_official_list() -> None:
    assert read_label_list(DEVKIT, 1000) == read_label_list(DEVKIT.with_name("val_list.txt"), 1000)


def test_tar_gives_the_pixels_of_the_folder(tmp_path: Path) -> None:
    folder, archive = flat(tmp_path)[0], validation_tar(tmp_path)[0]
    convert(folder, tmp_path / "a", tmp_path / "a.txt", workers=1)
    shutil.rmtree(folder)
    convert(archive, tmp_path / "b", tmp_path / "b.txt", workers=1)
    pairs = zip(read_local_datalist(tmp_path / "a.txt"), read_local_datalist(tmp_path / "b.txt"), strict=True)
    for left, right in pairs:
        np.testing.assert_array_equal(np.load(left)["input_0"], np.load(right)["input_0"])
