from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damaged import cut_or_flipped

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
            "activation relu: holds NaN or Inf in float32; check the checkpoint, the preprocessing, and "
            "constants of the network that are infinite"
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
    assert str(caught.value).startswith(f"{path}: invalid calibration file (")
    assert str(caught.value).endswith("); delete it and build again")


def test_load_raises_nothing_else_when_bytes_are_damaged(tmp_path: Path) -> None:
    seen = ObserverSet(["a", "b"])
    seen.add({"a": activations(1)[:, :, :1], "b": np.arange(9, dtype=np.float32)})
    path = tmp_path / "observers.npz"
    seen.save(path, images=1)
    whole = path.read_bytes()
    rng = random.Random(2)
    refused = 0
    for _ in range(300):
        path.write_bytes(cut_or_flipped(whole, rng))
        try:
            ObserverSet.load(path)
        except ArtefactError:
            refused += 1
    assert refused > 150


def large(seed: int, shape: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return 300,000 values as activations have them."""
    drawn = np.random.default_rng(seed).normal(0.3, 2, 300_000) * np.random.default_rng(seed + 1).gamma(1, 1, 300_000)
    values = {"signed": drawn, "relu": np.maximum(drawn, 0), "negative": -np.abs(drawn) - 1e-3, "zeros": 0 * drawn}
    return values[shape].astype(np.float32)


@pytest.mark.parametrize("shape", ["signed", "relu", "negative", "zeros"])
def test_large_tensors_are_sampled_but_for_their_tails(shape: str) -> None:
    """Percentiles of the last thousandth are exact; the others, and the searched ranges, next to that."""
    from pipeline.quant import search

    whole, sampled = ObserverSet(["t"]), ObserverSet(["t"], images=70)
    sampled.add({"t": large(100, shape)})
    sampled.set_tails()
    assert sampled.observers["t"].counts.sum() == 0
    for seed in range(8):
        for each in (whole, sampled):
            each.add({"t": large(10 * seed, shape)}, {"t"} if shape in ("relu", "zeros") else ())
    exact, found = whole.observers["t"], sampled.observers["t"]
    assert (found.lowest, found.highest) == (exact.lowest, exact.highest)
    assert found.counts.sum() == pytest.approx(exact.counts.sum(), rel=1e-3)
    assert np.count_nonzero(found.counts) <= np.count_nonzero(exact.counts)
    for percentile, error in ((99.0, 0.02), (99.95, 5e-3), (99.99, 5e-3), (99.9999, 5e-3)):
        ranges = [qmath.percentile_range(each.counts, each.lowest, each.highest, percentile) for each in (exact, found)]
        assert (ranges[1].low, ranges[1].high) == pytest.approx((ranges[0].low, ranges[0].high), rel=error)
    if shape != "zeros":
        ranges = [search.mse_range(each.counts, each.lowest, each.highest) for each in (exact, found)]
        assert (ranges[1].low, ranges[1].high) == pytest.approx((ranges[0].low, ranges[0].high), rel=0.05)


def test_tails_survive_saving_and_later_values_are_sampled_alike(tmp_path: Path) -> None:
    straight = ObserverSet(["t"], images=1000)
    straight.add({"t": large(1, "signed")})
    straight.set_tails()
    straight.add({"t": large(2, "signed")})
    straight.save(tmp_path / "observers.npz", images=1)
    resumed, _ = ObserverSet.load(tmp_path / "observers.npz")
    assert resumed.observers["t"].samples == 2048
    assert resumed.observers["t"].tails == straight.observers["t"].tails != (0, 0)
    for each in (straight, resumed):
        each.add({"t": large(3, "signed")})
    assert_equal(straight.observers["t"], resumed.observers["t"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 149, 150, 299_999])
def test_one_value_that_is_not_finite_is_found_in_a_sampled_tensor(bad: float, at: int) -> None:
    seen = ObserverSet(["t"], images=1000)
    seen.add({"t": large(1, "relu")})
    seen.set_tails()
    values = large(2, "relu")
    values[at] = bad
    with pytest.raises(DataError, match="activation t: holds NaN or Inf"):
        seen.add({"t": values})


def test_a_prime_step_leaves_about_the_wanted_share() -> None:
    assert [observers._stride(size, 100) for size in (1, 100, 101, 300, 301, 800, 2400)] == [1, 1, 2, 3, 5, 11, 29]


def test_extremes_of_a_sampled_tensor_are_exact() -> None:
    seen = ObserverSet(["t"], images=1000)
    seen.add({"t": large(1, "signed")})
    seen.set_tails()
    values = large(2, "signed")
    values[[1, 70_001]] = 1e3, -2e3
    seen.add({"t": values})
    assert (seen.observers["t"].lowest, seen.observers["t"].highest) == (-2e3, 1e3)
