from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ArtefactError, DataError
from pipeline.quant import observers, qmath
from pipeline.quant.observers import Observer, ObserverSet


def assert_equal(one: Observer, other: Observer) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    assert (one.lowest, one.highest) == (other.lowest, other.highest)


def activations(images: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(5).normal(0, 3, (images, 4, 9, 9)).astype(np.float32)


def test_observer_counts_like_a_dictionary_of_bins() -> None:
    values = activations(2)
    seen = Observer()
    seen.add(values)
    slow: dict[int, int] = {}
    for value in values.reshape(-1):
        key = int(value.view(np.uint32)) >> qmath.KEY_SHIFT
        slow[key] = slow.get(key, 0) + 1
    assert {int(key): int(seen.counts[key]) for key in np.flatnonzero(seen.counts)} == slow
    assert seen.lowest == values.min()
    assert seen.highest == values.max()


def test_observer_gives_the_same_when_values_come_in_pieces() -> None:
    values = activations(9)
    whole, pieces = Observer(), Observer()
    whole.add(values)
    for start, end in ((0, 1), (1, 4), (4, 4), (4, 9)):
        pieces.add(values[start:end])
    assert_equal(whole, pieces)


def test_observer_gives_the_same_when_an_array_is_larger_than_a_chunk() -> None:
    values = np.random.default_rng(6).normal(0, 1, observers._CHUNK + 12_345).astype(np.float32)
    values[-1], values[0] = 99.0, -99.0
    seen = Observer()
    seen.add(values)
    assert seen.counts.sum() == values.size
    np.testing.assert_array_equal(seen.counts, np.bincount(qmath.float_keys(values), minlength=qmath.BINS))
    assert (seen.lowest, seen.highest) == (-99.0, 99.0)


def test_observer_gives_the_same_when_the_array_is_not_contiguous() -> None:
    values = activations(3)
    straight, turned = Observer(), Observer()
    straight.add(values)
    turned.add(values.transpose(0, 3, 2, 1))
    assert_equal(straight, turned)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [0, 2])
def test_observer_set_names_the_tensor_when_it_holds_nan_or_inf(bad: float, batch: int) -> None:
    """In the first batch as in a later one, when the extremes are numbers already."""
    seen = ObserverSet(["input", "relu"])
    for number in range(3):
        values = {"input": activations(2), "relu": activations(2)}
        if number < batch:
            seen.add(values)
            continue
        values["relu"][1, 2, 3, 4] = bad
        with pytest.raises(DataError) as caught:
            seen.add(values)
        assert str(caught.value) == (
            "activation relu: holds NaN or Inf in float32; check the checkpoint and the preprocessing"
        )
        return


def test_observer_set_loses_nothing_when_threads_add_at_once() -> None:
    values = np.random.default_rng(7).normal(0, 3, 100_000).astype(np.float32)
    once, at_once = Observer(), ObserverSet(["a"])
    once.add(values)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: at_once.add({"a": values}), range(600)))
    np.testing.assert_array_equal(at_once.observers["a"].counts, 600 * once.counts)


def test_observer_set_is_the_same_when_saved_and_loaded(tmp_path: Path) -> None:
    seen = ObserverSet(["b/Conv:0", "a", "never"])
    for _ in range(2):
        seen.add({"a": activations(3), "b/Conv:0": -activations(2)})
        seen.add_means({"a": np.arange(4) / 3, "c": np.ones(2)})
    seen.save(tmp_path / "observers.npz", images=6)
    loaded, images = ObserverSet.load(tmp_path / "observers.npz")
    assert images == 6
    assert list(loaded.observers) == ["b/Conv:0", "a", "never"]
    for name, observer in seen.observers.items():
        assert_equal(observer, loaded.observers[name])
    assert list(loaded.mean_sums) == ["a", "c"]
    np.testing.assert_array_equal(loaded.mean_sums["a"], np.arange(4) / 3 + np.arange(4) / 3)
    np.testing.assert_array_equal(loaded.mean_sums["c"], [2, 2])
    loaded.add({"a": activations(1)})
    seen.add({"a": activations(1)})
    assert_equal(seen.observers["a"], loaded.observers["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["observers.npz"]


def test_observer_set_writes_equal_bytes_when_it_is_equal(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        seen = ObserverSet(["a"])
        seen.add({"a": activations(2)})
        seen.save(tmp_path / name, images=2)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_load_says_what_to_do_when_the_file_is_none_of_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "observers.npz"
    path.write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        ObserverSet.load(path)
    assert str(caught.value).startswith(f"{path}: not a calibration of ours (")
    assert str(caught.value).endswith("); delete it and build again")


def test_load_raises_nothing_else_when_bytes_are_damaged(tmp_path: Path) -> None:
    seen = ObserverSet(["a", "b"])
    seen.add({"a": activations(1)[:, :, :1], "b": np.arange(9, dtype=np.float32)})
    path = tmp_path / "observers.npz"
    seen.save(path, images=1)
    whole = path.read_bytes()
    rng = random.Random(2)
    refused = 0
    for case in range(300):
        damaged = bytearray(whole)
        if case % 4 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            ObserverSet.load(path)
        except ArtefactError:
            refused += 1
    assert refused > 150
