"""Prepared images that are kept for a later stage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import prepared, preprocess
from pipeline.data.sources import ImageSource


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return ImageSource(tmp_path, "a.png")


def test_load_gives_what_preprocess_gives_when_it_is_kept_and_when_not(
    spec: PreprocessSpec, source: ImageSource
) -> None:
    expected = preprocess.load(spec, source.content(), raw=True)
    assert np.array_equal(prepared.load(spec, source, raw=True, again=True), expected)
    with prepared.kept():
        first = prepared.load(spec, source, raw=True, again=True)
        assert prepared.load(spec, source, raw=True, again=True) is first
        assert prepared.load(spec, source, raw=True, again=False) is first
        anew = prepared.load(spec, source, raw=True, again=False)
    assert anew is not first
    for each in (first, anew):
        assert np.array_equal(each, expected)


def test_load_keeps_nothing_when_no_build_runs(spec: PreprocessSpec, source: ImageSource) -> None:
    with prepared.kept():
        first = prepared.load(spec, source, raw=True, again=True)
    assert prepared.load(spec, source, raw=True, again=True) is not first
    with prepared.kept():
        assert prepared.load(spec, source, raw=True, again=True) is not first


def test_load_prepares_anew_when_the_file_or_the_preprocessing_is_another(
    spec: PreprocessSpec, source: ImageSource
) -> None:
    other = replace(spec, mean=(0.1, 0.2, 0.3))
    with prepared.kept():
        prepared.load(spec, source, raw=False, again=True)
        found = prepared.load(other, source, raw=False, again=True)
        assert np.array_equal(found, preprocess.load(other, source.content(), raw=False))
        assert prepared.load(spec, source, raw=True, again=True).dtype == np.uint8
        path = source.root / source.name
        assert isinstance(path, Path)
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
        os.utime(path, ns=(1, 1))
        changed = prepared.load(spec, source, raw=True, again=True)
    assert not changed.any()


def test_load_keeps_no_more_than_there_is_room_for(
    spec: PreprocessSpec, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = preprocess.load(spec, source.content(), raw=True).nbytes
    monkeypatch.setattr(prepared, "_MOST", 2 * one)
    turned = [replace(spec, mean=(0.1 * number, 0.0, 0.0)) for number in range(3)]
    with prepared.kept():
        first = [prepared.load(each, source, raw=True, again=True) for each in turned]
        again = [prepared.load(each, source, raw=True, again=True) for each in turned]
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, True, False]
