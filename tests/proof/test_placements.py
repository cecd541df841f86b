"""The choice among placements: by speed beyond doubt, and by what noise and divergence grow."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.proof import placements
from pipeline.proof.placements import FEWER, MORE, Tried, compare, describe
from pipeline.proof.speed import Candidate
from pipeline.quant.divergence import ByImage
from pipeline.runtimes.base import Runtime

WOBBLE = (0.99, 1.0, 1.01, 1.0, 0.98, 1.02)
SCORES = "scores of attention"
RUNTIMES = (Runtime.OPENVINO, Runtime.ONNXRUNTIME)


def tried(per_s: float, sqnr_db: float, kl: float = 0.001, wobble: tuple[float, ...] = WOBBLE) -> Tried:
    noise = 10 ** (-sqnr_db / 10)
    images = np.ones(60)
    return Tried([per_s * each for each in wobble], ByImage(kl * images, images, noise * images))


@pytest.mark.parametrize(
    ("times", "fewer_db", "more_db", "is_taken"),
    [
        (1.11, 28.4, 28.0, True),  # deit_tiny
        (1.25, 11.3, 10.3, False),  # a transformer of sharp attention: there is much noise already
        (1.25, 27.3, 26.3, True),  # as much more noise, of little
        (2.4, 38.3, 36.1, True),  # seresnet18 in ONNX Runtime
        (1.16, 26.8, 17.7, False),  # mobilenet_v3_large there
        (3.0, 30.0, 26.9, False),  # twice the noise, at any speed
        (3.0, 54.4, 48.9, True),  # of so little that it does not matter
        (1.07, 28.4, 28.4, False),  # too slow
        (1.11, 28.0, 28.4, True),  # more accurate by chance
    ],
)
def test_more_is_int8_when_speed_is_worth_the_noise(
    times: float, fewer_db: float, more_db: float, is_taken: bool
) -> None:
    found = {"openvino": {FEWER: tried(100, fewer_db), MORE: tried(100 * times, more_db)}}
    compared = compare(found, 1.08)
    assert compared.takes_more is is_taken
    assert compared.lost_db == pytest.approx(fewer_db - more_db)


def test_allowed_noise_is_a_twentieth_of_the_gain_within_bounds() -> None:
    def allowed(times: float, sqnr_db: float) -> float:
        found = {"openvino": {FEWER: tried(100, sqnr_db), MORE: tried(100 * times, sqnr_db)}}
        return compare(found, 1.08).allowed_db

    assert allowed(1.2, 20.0) == pytest.approx(20 * math.log10(0.11 / 0.10))
    assert allowed(3.0, 20.0) == pytest.approx(10 * math.log10(2))
    assert allowed(3.0, 60.0) == pytest.approx(20.0)  # up to 40 dB
    assert allowed(1.1, 60.0) == pytest.approx(20 * math.log10(0.006 / 0.001))
    assert allowed(0.9, 20.0) == 0.0
    assert allowed(1.1, math.inf) == math.inf


def test_fewer_quantizers_win_when_the_interval_reaches_below_the_speed_wanted() -> None:
    found = {"openvino": {FEWER: tried(100, 28), MORE: tried(112, 28, wobble=(0.9, 1.0, 1.01, 1.0, 0.98, 1.02))}}
    assert compare(found, 1.08).speed.median > 1.08
    assert not compare(found, 1.08).takes_more


def test_least_ratio_counts_when_the_rounds_are_too_few_for_an_interval() -> None:
    found = {"openvino": {FEWER: tried(100, 28, wobble=(1.0, 1.0)), MORE: tried(120, 28, wobble=(1.0, 0.8))}}
    assert compare(found, 1.08).sure_speed == pytest.approx(0.96)
    assert compare(found, 0.95).takes_more


def test_worst_round_counts_when_runtimes_were_measured_one_after_the_other() -> None:
    found = {
        "openvino": {FEWER: tried(100, 30.0), MORE: tried(50, 30.0)},
        "onnxruntime": {FEWER: tried(50, 30.0, wobble=(1.0,)), MORE: tried(111, 30.0, wobble=(0.98, 1.0))},
    }
    compared = compare(found, 1.08)
    assert compared.speed.median > 1.08 and compared.speed.interval is None
    assert compared.sure_speed == pytest.approx(111 * 0.98 / (100 * 1.02))
    assert not compared.is_faster


def test_compare_takes_each_placement_in_its_fastest_runtime() -> None:
    found = {
        "openvino": {FEWER: tried(94, 27.0), MORE: tried(57, 18.0)},
        "onnxruntime": {FEWER: tried(40, 28.0), MORE: tried(60, 19.0)},
    }
    compared = compare(found, 1.03)
    assert compared.runtimes == {FEWER: "openvino", MORE: "onnxruntime"}
    assert compared.speed.median == pytest.approx(60 / 94)
    assert compared.lost_db == pytest.approx(8.0)


def test_divergence_forbids_what_noise_allows_when_it_grows_beyond_doubt() -> None:
    def with_kl(kl: np.ndarray) -> bool:
        more = Tried([120.0] * 6, ByImage(kl, np.ones(60), np.full(60, 10**-2.8)))
        return compare({"openvino": {FEWER: tried(100, 28.0), MORE: more}}, 1.08).takes_more

    assert not with_kl(np.full(60, 0.002))
    doubtful = np.full(60, 0.001)
    doubtful[0] = 0.061  # the same mean, of one image
    assert with_kl(doubtful)


def test_answers_that_are_no_numbers_are_never_taken() -> None:
    more = Tried([200.0] * 6, ByImage(np.full(60, np.nan), np.ones(60), np.full(60, np.nan)))
    compared = compare({"openvino": {FEWER: tried(100, 28.0), MORE: more}}, 1.08)
    assert not compared.takes_more
    assert compared.as_document()["lost_db"] is None
    assert "for an unknown loss" in describe(SCORES, compared.as_document())


def test_is_clear_when_the_interval_excludes_the_speed_wanted_in_every_runtime() -> None:
    def clear(times: float, in_the_slower: float = 0.75) -> bool:
        rates = {FEWER: (100.0, 40.0), MORE: (100 * times, 40 * in_the_slower)}
        pairs = [
            (name, runtime, rate) for name, both in rates.items() for runtime, rate in zip(RUNTIMES, both, strict=True)
        ]
        candidates = [Candidate(runtime, "int8", Path(f"{name}.onnx")) for name, runtime, _ in pairs]
        rounds = [[rate * each for each in WOBBLE[index:] + WOBBLE[:index]] for index, (*_, rate) in enumerate(pairs)]
        return placements.is_clear(1.08, candidates, rounds)

    assert clear(1.2)
    assert clear(1.0)
    assert not clear(1.08)
    assert not clear(1.2, 1.08)
    candidates = [Candidate(Runtime.OPENVINO, "int8", Path(f"{name}.onnx")) for name in (FEWER, MORE)]
    assert not placements.is_clear(1.08, candidates, [[1.0] * 5, [2.0] * 5])


def test_describe_says_what_was_chosen_and_what_it_brought_and_cost() -> None:
    taken = compare({"openvino": {FEWER: tried(100, 27.2, 0.00007), MORE: tried(111, 26.8, 0.00007)}}, 1.08)
    figures = "(int8 26.8 dB, KL 0.00007; float32 27.2 dB, KL 0.00007; 60 calibration images)"
    assert describe(SCORES, taken.as_document()) == (
        f"{SCORES} are int8: 1.11x (1.11 to 1.11) as fast so in openvino, for 0.4 dB {figures}"
    )
    dear = compare({"openvino": {FEWER: tried(100, 11.3), MORE: tried(125, 10.3)}}, 1.08)
    assert describe(SCORES, dear.as_document()).startswith(
        f"{SCORES} are float32: int8 is 1.25x (1.25 to 1.25) as fast in openvino, for 1.0 dB; worth 0.4 dB at the most "
    )
    slow = compare({"openvino": {FEWER: tried(100, 27.2), MORE: tried(102, 26.8)}}, 1.08)
    assert describe(SCORES, slow.as_document()).startswith(
        f"{SCORES} are float32: int8 is 1.02x (1.02 to 1.02) as fast in openvino, 1.08x is not sure, for 0.4 dB ("
    )
