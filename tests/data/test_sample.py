from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import sample


def _pixels(class_index: int, image_index: int, split: str) -> np.ndarray:
    return np.asarray(sample.sample_image(class_index, image_index, split))


def test_sample_image_repeats_itself_when_called_twice() -> None:
    np.testing.assert_array_equal(_pixels(7, 0, "calibration"), _pixels(7, 0, "calibration"))


def test_sample_image_is_a_photograph_in_size_and_mode() -> None:
    images = [sample.sample_image(index, 0, "evaluation") for index in range(20)]
    assert {image.mode for image in images} == {"RGB"}
    assert all(288 <= min(image.size) <= 336 and max(image.size) <= 1.07 * min(image.size) for image in images)
    assert len({image.size for image in images}) > 10


@pytest.mark.parametrize("other", [(8, 0, "calibration"), (7, 1, "calibration"), (7, 0, "evaluation")])
def test_sample_image_differs_when_class_index_or_split_differs(other: tuple[int, int, str]) -> None:
    one, two = _pixels(7, 0, "calibration")[:280, :280].astype(int), _pixels(*other)[:280, :280].astype(int)
    assert np.abs(one - two).mean() > 10


def test_sample_image_shows_neither_black_nor_white_when_light_varies() -> None:
    pixels = np.stack([_pixels(index, 0, "calibration")[:280, :280] for index in range(20)])
    assert np.mean((pixels == 0) | (pixels == 255)) < 0.05
    assert pixels.std() > 30


def test_sample_image_has_the_frequency_of_its_class() -> None:
    texture = sample.class_texture(3)
    green = _pixels(3, 0, "evaluation")[..., 1].astype(float)
    side = min(green.shape)
    spectrum = np.abs(np.fft.fft2(green[:side, :side]))
    spectrum[0, 0] = 0  # the mean level, not a wave
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    found = np.hypot(np.fft.fftfreq(side, 1 / side)[row], np.fft.fftfreq(side, 1 / side)[column])
    overtones = np.outer([wave.cycles for wave in texture.waves], [1, 2])  # a ridge has two crests a turn
    assert np.min(np.abs(found / overtones - 1)) < 0.1


@pytest.mark.parametrize("index", [-1, 1000])
def test_sample_image_names_the_range_when_the_class_is_unknown(index: int) -> None:
    with pytest.raises(ValueError, match=rf"class index: must be in \[0, 1000\), got {index}"):
        sample.sample_image(index, 0, "calibration")


def test_sample_image_names_the_splits_when_the_split_is_unknown() -> None:
    with pytest.raises(ValueError, match="split: must be one of calibration, evaluation, got 'train'"):
        sample.sample_image(0, 0, "train")


def test_sample_class_names_are_short_and_unique() -> None:
    names = sample.sample_class_names()
    assert len(set(names)) == sample.SAMPLE_CLASSES == 1000
    assert names[7].startswith("sample 0007: ")
    assert max(map(len, names)) < 60


def test_write_sample_writes_one_folder_a_class_when_classes_are_chosen(tmp_path: Path) -> None:
    sample.write_sample(tmp_path, "evaluation", range(0, 6, 2))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        f"sample000{index}/sample000{index}_0.JPEG" for index in (0, 2, 4)
    ]
    with Image.open(tmp_path / "sample0002" / "sample0002_0.JPEG") as image:
        written = np.asarray(image).astype(int)
    assert np.abs(written - _pixels(2, 0, "evaluation")).mean() < 8  # of 255: what JPEG loses of the noise
