from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.calibration_list import read_calibration_list, write_calibration_list
from pipeline.data.imagenet import Dataset, list_dataset, make_sample
from pipeline.data.labels import classes_of
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError
from pipeline.stages import calibset

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
        "sampler.get_data_num 5 is less than the 8 classes of /data: set dataset.sampler.get_data_num (--num of "
        "calibset) to 8 or more, or dataset.sampler.cover_classes to false"
    )


def test_choose_says_so_when_there_are_fewer_images() -> None:
    assert error_of(make_dataset({"a": 2, "b": 1}), 4) == (
        "/data: holds 3 images, sampler.get_data_num asks for 4; ask for fewer (--num of calibset) or give a "
        "larger data set"
    )
    assert error_of(make_dataset({"a": 2}), 0) == "sampler.get_data_num must be at least 1, got 0"


def test_choose_names_classes_without_an_image() -> None:
    assert error_of(make_dataset({"a": 5, "b": 0, "c": 0, "d": 0, "e": 0}), 5) == (
        "/data: 4 of 5 classes have no image: b, c, d, ...; add images of them, or set dataset.sampler.cover_classes to"
        " false"
    )


@pytest.mark.realdata
@needs_real_data
def test_choose_covers_all_classes_of_the_real_set(tmp_path: Path) -> None:
    chosen = calibset.choose(list_dataset(REAL / "imagenet_train1k"), 1000)
    assert {sample.class_index for sample in chosen} == set(range(1000))
    write_calibration_list(chosen, tmp_path / "list.txt")
    assert read_calibration_list(tmp_path / "list.txt") == chosen
