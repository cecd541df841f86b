from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.build_config import BuildConfig
from pipeline.data import preprocess
from pipeline.data.calibration_list import read_calibration_list, write_calibration_list
from pipeline.data.imagenet import Dataset, Sample, list_dataset, make_sample
from pipeline.data.labels import classes_of
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError
from pipeline.stages import calibset
from pipeline.stages.artefact_names import read_notes

MakeConfig = Callable[..., BuildConfig]

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")


def make_dataset(sizes: dict[str, int], labelled: bool = True) -> Dataset:
    """Return a data set with so many images of each class; no file is made."""
    root = Path("/data")
    names = [(index, f"{name}/{k}.JPEG") for index, (name, size) in enumerate(sizes.items()) for k in range(size)]
    samples = tuple(make_sample(ImageSource(root, name), index if labelled else None) for index, name in names)
    return Dataset(root, samples, classes_of(list(sizes)))


def counts(dataset: Dataset, count: int, seed: int = 0, cover_classes: bool = True) -> Counter[str]:
    return Counter(sample.folder for sample in calibset.choose(dataset, count, seed, cover_classes))


def error_of(dataset: Dataset, count: int) -> str:
    with pytest.raises(DataError) as caught:
        calibset.choose(dataset, count)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ({"a": 9, "b": 9, "c": 9}, 3, [1, 1, 1]),
        ({"a": 9, "b": 9, "c": 9}, 8, [2, 3, 3]),
        ({"a": 1, "b": 9, "c": 9}, 9, [1, 4, 4]),
        ({"a": 1, "b": 2, "c": 90}, 20, [1, 2, 17]),
        ({"a": 1, "b": 2, "c": 3}, 6, [1, 2, 3]),
    ],
)
def test_choose_spreads_evenly_as_far_as_images_allow(sizes: dict[str, int], count: int, expected: list[int]) -> None:
    for seed in range(5):
        assert sorted(counts(make_dataset(sizes), count, seed).values()) == expected


def test_choose_depends_on_the_seed_alone() -> None:
    dataset = make_dataset({"a": 50, "b": 50})
    shuffled = list(dataset.samples)
    random.Random(1).shuffle(shuffled)
    again = Dataset(dataset.path, tuple(shuffled), dataset.classes)
    assert calibset.choose(dataset, 20, 3) == calibset.choose(again, 20, 3)
    assert calibset.choose(dataset, 20, 3) != calibset.choose(dataset, 20, 4)
    assert len(set(calibset.choose(dataset, 100, 0))) == 100


def test_choose_takes_fewer_than_classes_when_coverage_is_not_asked() -> None:
    dataset = make_dataset(dict.fromkeys("abcdefgh", 3))
    assert sorted(counts(dataset, 5, cover_classes=False).values()) == [1, 1, 1, 1, 1]
    unlabelled = make_dataset({"x": 10}, labelled=False)
    assert len(set(calibset.choose(unlabelled, 7, cover_classes=False))) == 7


def test_choose_says_what_to_set_when_fewer_than_classes_are_wanted() -> None:
    assert error_of(make_dataset(dict.fromkeys("abcdefgh", 3)), 5) == (
        "sampler.get_data_num 5 is less than the 8 classes of /data: set it to 8 or more (--num_images of build, "
        "--num of calibset), or dataset.sampler.cover_classes to false"
    )


def test_choose_says_so_when_there_are_fewer_images() -> None:
    assert error_of(make_dataset({"a": 2, "b": 1}), 4) == (
        "/data: holds 3 images, sampler.get_data_num asks for 4; ask for 3 (--num_images of build, --num of "
        "calibset) or give a larger data set"
    )
    assert error_of(make_dataset({"a": 2}), 0) == "sampler.get_data_num must be at least 1, got 0"


def test_choose_names_classes_without_an_image() -> None:
    assert error_of(make_dataset({"a": 5, "b": 0, "c": 0, "d": 0, "e": 0}), 5) == (
        "/data: 4 of 5 classes have no image: b, c, d, ...; add images of them, remove folders that are no classes, or "
        "set dataset.sampler.cover_classes to false"
    )


@pytest.mark.realdata
@needs_real_data
def test_choose_covers_all_classes_of_the_real_set(tmp_path: Path) -> None:
    chosen = calibset.choose(list_dataset(REAL / "imagenet_train1k"), 1000)
    assert {sample.class_index for sample in chosen} == set(range(1000))
    write_calibration_list(chosen, tmp_path / "list.txt")
    assert read_calibration_list(tmp_path / "list.txt") == chosen


def damage(image_tree: Path) -> dict[str, str]:
    """Cut, empty and replace three images of two classes; return a part of the reason for each, by name."""
    cut, empty, text = (
        image_tree / "n90000001" / "n90000001_0.JPEG",
        image_tree / "n90000001" / "n90000001_3.JPEG",
        image_tree / "n90000003" / "n90000003_5.JPEG",
    )
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])  # its header and size can be read
    empty.write_bytes(b"")
    text.write_text("not an image", encoding="utf-8")
    return {
        str(cut): "image file is truncated",
        str(empty): "it is empty; copy or download it again",
        str(text): "no format",
    }


def run(cfg: BuildConfig, out: Path) -> list[Sample]:
    out.mkdir()
    calibset.run(calibset.take_settings(cfg), {}, out)
    return read_calibration_list(out / "calibration.txt")


def test_run_names_every_damaged_image_at_once(make_config: MakeConfig, image_tree: Path, tmp_path: Path) -> None:
    reasons = damage(image_tree)
    with pytest.raises(DataError) as caught:
        run(make_config("dataset.sampler.get_data_num=24"), tmp_path / "out")
    first, *lines = str(caught.value).splitlines()
    assert first == (
        f"{image_tree}: 3 of the 24 images chosen for calibration cannot be decoded; replace or remove them, or take "
        "others of the same classes: --skip_bad of build (dataset.skip_bad: true)"
    )
    assert len(lines) == 3
    for line, (name, reason) in zip(lines, sorted(reasons.items()), strict=True):
        assert line.startswith(f"  {name}: cannot be decoded as an image: ")
        assert reason in line
        assert "bytes:" not in line


def test_run_takes_others_of_the_same_class_when_images_are_skipped(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path
) -> None:
    options = ("dataset.sampler.get_data_num=12", "dataset.skip_bad=true")
    before = run(make_config(*options), tmp_path / "before")
    assert Counter(sample.folder for sample in before) == dict.fromkeys(
        ("n90000001", "n90000002", "n90000003", "n90000004"), 3
    )
    gone = before[0].source
    (image_tree / gone.name).write_bytes(b"\xff\xd8 broken")
    after = run(make_config(*options), tmp_path / "after")
    assert Counter(sample.folder for sample in after) == Counter(sample.folder for sample in before)
    assert {sample.source for sample in before} - {sample.source for sample in after} == {gone}
    (note,) = read_notes(tmp_path / "after")
    first, line = note.splitlines()
    assert first == "1 calibration images left out:"
    assert line.startswith(f"  {image_tree}/{gone.name}: cannot be decoded as an image: ")
    listed = [line.split("  ") for line in (tmp_path / "after" / "images.sha256").read_text().splitlines()]
    digests = {name: digest for digest, name in listed}
    assert digests == {
        sample.source.name: hashlib.sha256((image_tree / sample.source.name).read_bytes()).hexdigest()
        for sample in after
    }


def test_run_says_which_images_of_16_bits_hold_12(make_config: MakeConfig, image_tree: Path, tmp_path: Path) -> None:
    deep = image_tree / "n90000002" / "deep.png"
    Image.fromarray(np.full((40, 40), 4000, np.uint16)).save(deep)
    count = sum(1 for path in image_tree.rglob("*") if path.is_file())
    run(make_config(f"dataset.sampler.get_data_num={count}"), tmp_path / "out")
    (note,) = read_notes(tmp_path / "out")
    assert note.startswith(
        f"1 of {count} images have 16 bits a channel and no value above 4095 (first: {deep}, largest 4000): "
    )


def test_run_says_what_is_lacking_when_too_few_images_can_be_decoded(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path
) -> None:
    damage(image_tree)
    with pytest.raises(DataError, match=r"holds 21 images that can be decoded, sampler\.get_data_num asks for 22;"):
        run(make_config("dataset.sampler.get_data_num=22", "dataset.skip_bad=true"), tmp_path / "few")
    for path in (image_tree / "n90000002").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 4 classes have no image that can be decoded: n90000002;"):
        run(make_config("dataset.sampler.get_data_num=8", "dataset.skip_bad=true"), tmp_path / "none")
    float_model = make_config("dataset.sampler.get_data_num=24", "dataset.skip_bad=true", "backend.dtype=fp16")
    assert len(run(float_model, tmp_path / "float")) == 15  # all there are


def test_run_decodes_no_image_twice_when_images_are_skipped(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(image_tree)
    decoded: list[bytes] = []
    decode = preprocess.decode

    def watched(content: bytes) -> preprocess.Pixels:
        decoded.append(content)
        return decode(content)

    monkeypatch.setattr(preprocess, "decode", watched)
    run(make_config("dataset.sampler.get_data_num=20", "dataset.skip_bad=true"), tmp_path / "out")
    assert len(decoded) == len(set(decoded)) <= 24


def test_choose_replaces_what_is_left_out_and_keeps_the_others() -> None:
    dataset = make_dataset({"a": 30, "b": 30, "c": 30})
    chosen = calibset.choose(dataset, 20, 5)
    gone = {sample.source for sample in chosen[:3]}
    other = calibset.choose(dataset, 20, 5, without=gone)
    assert len(other) == 20
    assert {sample.source for sample in chosen} - {sample.source for sample in other} == gone
    assert Counter(sample.folder for sample in other) == Counter(sample.folder for sample in chosen)
