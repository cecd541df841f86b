"""Speeds relative to each other: int8 to float32, and runtime to runtime, measured in interleaved rounds.

When a machine changes its speed, everything measured in the same round changes with it. So two candidates are compared
by the median of their ratios over the rounds, with a confidence interval.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.preprocess import Prepared
from pipeline.errors import ConfigError
from pipeline.host.hardware import available_cores
from pipeline.proof.ratios import Ratio, ratio
from pipeline.runtimes.base import Backend, Batch, Runtime
from pipeline.runtimes.opening import open_backend, place

SECONDS = "INT8_PIPELINE_TRIAL_SECONDS"  # environment variable: seconds that a build may spend on it; 0: none
_SECONDS = 15.0
_BATCH = 8  # images per request, as in predict and serve; fewer where they take long
_SLOT_S = 0.03  # least time of a candidate in a round: shorter ones measure the clock's resolution
_LOOKS = (6, 12, 24, 48)  # rounds after which it may end: testing after every round would find differences by chance
_OVERTIME = 4.0  # times the seconds, until the first test; beyond, the result is unknown

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A model in a runtime."""

    runtime: Runtime
    precision: str  # int8, or float32
    model: Path


@dataclass(frozen=True)
class Rates:
    """What was measured: for each candidate images/s, round by round, and its outputs for the images given."""

    batch: int  # images per request
    requests: int  # in flight
    rounds: list[list[float]]  # by candidate
    answers: tuple[Float32, ...] = ()  # by candidate, [images, classes]; none without images


def budget_seconds() -> float:
    """Return how long a build may measure speeds, each time it does, in s.

    Raises:
        ConfigError: the variable is not a number.
    """
    text = os.environ.get(SECONDS, "")
    try:
        value = float(text) if text else _SECONDS
    except ValueError:
        value = math.nan
    if not 0 <= value <= 3600:
        raise ConfigError(f"{SECONDS}: expected 0 to 3600 seconds, got {text!r}")
    return value


Rounds = Sequence[Sequence[float]]  # by candidate, images/s round by round


def measure(
    candidates: Sequence[Candidate],
    seconds: float,
    is_clear: Callable[[Sequence[Candidate], Rounds], bool] | None = None,
    images: Sequence[Prepared] = (),
    *,
    by_cpu: bool = False,
) -> Rates:
    """Measure candidates in turn until it is clear which of each compared pair is the faster, or the time is over.

    Args:
        candidates: of one network; all of them are held in memory.
        seconds: after these no round begins once the least number is done; 4 times as many end it in any case.
        is_clear: of what was measured so far, in the place of whether each compared pair is.
        images: that each answers once it was measured, as prepared for the models.
        by_cpu: rates are those of a machine without other work: images by CPU time, of which other processes take none.

    Raises:
        BackendError: a runtime refuses a model.
    """
    cores = available_cores()
    clear = is_clear or _is_every_pair_clear
    with ExitStack() as opened, ThreadPoolExecutor(cores) as pool:
        batch, slots = _BATCH, _open(opened, candidates, _BATCH, pool, by_cpu)
        once = sum(slot.seconds for slot in slots)
        most = seconds / _LOOKS[0] / 2
        if once > most and batch > 1:
            batch = max(1, 2 ** math.floor(math.log2(batch * most / once)))
            opened.close()
            slots = _open(opened, candidates, batch, pool, by_cpu)
        rounds: list[list[float]] = [[] for _ in candidates]
        begun = time.perf_counter()
        while not _is_over(candidates, rounds, time.perf_counter() - begun, seconds, clear):
            order = range(len(slots)) if len(rounds[0]) % 2 else range(len(slots) - 1, -1, -1)
            for index in order:
                rounds[index].append(slots[index].rate())
        answers = tuple(slot.answers(images) for slot in slots) if images else ()
    return Rates(batch, cores, rounds, answers)


def _open(
    opened: ExitStack, candidates: Sequence[Candidate], batch: int, pool: ThreadPoolExecutor, by_cpu: bool
) -> list[_Slot]:
    placement = place(available_cores(), available_cores())
    slots = []
    for each in candidates:
        backend = open_backend(each.runtime, each.model, batch=batch, placement=placement)
        slots.append(_Slot(opened.enter_context(backend), batch, pool, by_cpu))
    return slots


class _Slot:
    """A candidate, loaded and warmed up."""

    def __init__(self, backend: Backend, batch: int, pool: ThreadPoolExecutor, by_cpu: bool) -> None:
        self._backend, self._pool, self._by_cpu = backend, pool, by_cpu
        shape = (batch, *(axis or 1 for axis in backend.input.shape[1:]))
        self._images = _images(shape, backend.input.dtype)
        self._requests = available_cores()
        self.rate()
        begun = time.perf_counter()
        self.rate()
        self.seconds = time.perf_counter() - begun  # of one round
        self._requests *= max(1, math.ceil(_SLOT_S / self.seconds))

    def rate(self) -> float:
        """Return images/s, with as many requests in flight as there are cores."""
        begun = self._now()
        for _ in self._pool.map(self._backend.infer, [self._images] * self._requests):
            pass
        return self._requests * len(self._images) / (self._now() - begun)

    def answers(self, images: Sequence[Prepared]) -> Float32:
        """Return the outputs for some images, [images, classes]."""
        batch = len(self._images)
        batches = [np.stack(images[start : start + batch]) for start in range(0, len(images), batch)]
        return np.concatenate(list(self._pool.map(self._backend.infer, batches)))

    def _now(self) -> float:
        return time.process_time() / available_cores() if self._by_cpu else time.perf_counter()


def _images(shape: tuple[int, ...], dtype: str) -> Batch:
    random = np.random.default_rng(0)
    if dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape, np.float32)


def _is_over(
    candidates: Sequence[Candidate],
    rounds: Rounds,
    spent: float,
    seconds: float,
    is_clear: Callable[[Sequence[Candidate], Rounds], bool],
) -> bool:
    done = len(rounds[0])
    if done < _LOOKS[0]:
        return spent > _OVERTIME * seconds
    if spent > seconds or done >= _LOOKS[-1]:
        return True
    return done in _LOOKS and is_clear(candidates, rounds)


def _is_every_pair_clear(candidates: Sequence[Candidate], rounds: Rounds) -> bool:
    return all(ratio(rounds[a], rounds[b]).is_clear for a, b in _pairs(candidates))


def _pairs(candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
    """Return which candidates are compared: a runtime's int8 with its float32, and the int8 of runtimes."""
    found = []
    for a, one in enumerate(candidates):
        for b, other in enumerate(candidates):
            if one.precision == "int8" and (
                (other.precision != "int8" and one.runtime is other.runtime) or (other.precision == "int8" and a < b)
            ):
                found.append((a, b))
    return found


def record(candidates: Sequence[Candidate], rates: Rates) -> dict[str, Any]:
    """Return the measurements as plain data: rates and ratios, and the fastest runtime where that is clear."""
    runtimes: dict[str, Any] = {}
    for a, b in _pairs(candidates):
        if candidates[b].precision != "int8":
            found = ratio(rates.rounds[a], rates.rounds[b])
            runtimes[candidates[a].runtime.value] = {
                "int8": round(median(rates.rounds[a]), 2),
                "float32": round(median(rates.rounds[b]), 2),
                "ratio": found.median,
                "interval": found.interval,
            }
    int8 = [index for index, each in enumerate(candidates) if each.precision == "int8"]
    fastest, beside = None, None
    if len(int8) == 1:
        fastest = candidates[int8[0]].runtime.value
    elif len(int8) == 2:
        one, other = sorted(int8, key=lambda index: -median(rates.rounds[index]))
        found = ratio(rates.rounds[one], rates.rounds[other])
        fastest = candidates[one].runtime.value if found.is_clear and found.median > 1 else None
        names = [candidates[one].runtime.value, candidates[other].runtime.value]
        beside = {"runtimes": names, "ratio": found.median, "interval": found.interval}
    return {
        "batch": rates.batch,
        "requests": rates.requests,
        "rounds": len(rates.rounds[0]),
        "runtimes": runtimes,
        "fastest": fastest,
        "beside": beside,
    }


def describe(speed: Mapping[str, Any], runtime: Runtime) -> tuple[bool, str]:
    """Return whether float32 is the better package in a runtime, and a line on what was measured there."""
    found = speed["runtimes"].get(runtime.value)
    if found is None:
        return False, f"how fast int8 is beside float32 in {runtime.value} was not measured"
    low_high = None if found["interval"] is None else (float(found["interval"][0]), float(found["interval"][1]))
    measured = Ratio(found["ratio"], low_high)
    if measured.is_clear and measured.median > 1:
        return False, f"int8 runs {measured} as fast as float32 in {runtime.value}"
    if measured.is_clear:
        return True, (
            f"int8 runs {measured} as fast as float32 in {runtime.value}: a float32 package is the better one here; "
            "build it with --set backend.dtype=fp32"
        )
    return False, (
        f"whether int8 is faster than float32 in {runtime.value} is not known: {measured} as fast in {speed['rounds']} "
        "rounds; bench --reference measures longer"
    )


def describe_others(speed: Mapping[str, Any], chosen: Runtime) -> list[str]:
    """Return a line for each runtime that `auto` does not take and in which int8 is slower than float32."""
    return [
        f"{describe(speed, runtime)[1].partition(':')[0]}: run it in {chosen.value}, which auto takes"
        for runtime in Runtime
        if runtime is not chosen and describe(speed, runtime)[0]
    ]


def describe_choice(speed: Mapping[str, Any], chosen: Runtime) -> str | None:
    """Return a line on how the runtime that `auto` takes was chosen; None where there was no other."""
    beside = speed["beside"]
    if not beside:
        return None
    interval = None if beside["interval"] is None else (float(beside["interval"][0]), float(beside["interval"][1]))
    measured, (first, second) = Ratio(beside["ratio"], interval), beside["runtimes"]
    if speed["fastest"] == chosen.value:
        return f"auto takes {chosen.value}, {measured} as fast as {second}"
    return f"auto takes {chosen.value}; neither is clearly faster: {first} is {measured} as fast as {second}"
