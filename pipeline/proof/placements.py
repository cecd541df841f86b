"""Which of two placements of quantizers an int8 model gets: the faster one, as far as its answers stay near float32's.

Both are run in turn in every installed runtime (`speed.measure`), and answer images that no weight was fitted to. The
placement with more quantizers has to be faster beyond doubt, and to cost no more accuracy than its speed is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipeline.proof.ratios import Ratio, ratio
from pipeline.proof.speed import Candidate, Rounds
from pipeline.quant.divergence import ByImage

FEWER, MORE = "float32", "int8"  # the placements, by what the part in question computes in

# Amplitudes of noise are shares of that of the scores. One may grow by this for twice the speed: where there is much
# noise already, and some answers are doubtful, it may grow by fewer dB than where there is little.
_SHARE = 0.05
_MOST_GROWTH = math.sqrt(2)  # 3 dB, at any speed
_NEGLIGIBLE = 0.01  # 40 dB, up to which it may grow in any case
_DOUBT = 2.0  # standard errors of the mean: a few doubtful images decide the divergence


@dataclass(frozen=True)
class Tried:
    """A placement in a runtime: images/s round by round, and how far its answers are from float32's."""

    rates: Sequence[float]
    accuracy: ByImage

    @property
    def kl(self) -> float:
        """Mean divergence, nats per image."""
        return float(self.accuracy.kl.mean())

    @property
    def sqnr_db(self) -> float:
        return _decibels(float(self.accuracy.signal.sum()), float(self.accuracy.noise.sum()))


Found = Mapping[str, Mapping[str, Tried]]  # by runtime and placement


@dataclass(frozen=True)
class Comparison:
    """Both placements, each in its fastest runtime."""

    least: float  # times as fast as the placement with fewer quantizers, that the other has to be
    runtimes: Mapping[str, str]  # by placement
    tried: Mapping[str, Tried]  # by placement
    speed: Ratio  # of the placement with more quantizers, over the other

    @property
    def sure_speed(self) -> float:
        """The speed beyond doubt: of many rounds the lower end of the interval, of few the least that they allow."""
        if self.speed.interval is not None:
            return self.speed.interval[0]
        fewer, more = (self.tried[name].rates for name in (FEWER, MORE))
        if len(fewer) != len(more):
            return min(more) / max(fewer)
        return min(a / b for a, b in zip(more, fewer, strict=True))

    @property
    def lost_db(self) -> float:
        """By how much more noise the placement with more quantizers has."""
        return _decibels(*(float(self.tried[name].accuracy.noise.sum()) for name in (MORE, FEWER)))

    @property
    def allowed_db(self) -> float:
        """By how much more noise it may have for its speed; inf where the other has none."""
        accuracy = self.tried[FEWER].accuracy
        amplitude = math.sqrt(float(accuracy.noise.sum() / accuracy.signal.sum()))
        paid = amplitude + _SHARE * max(0.0, self.sure_speed - 1)
        most = min(paid, max(_MOST_GROWTH * amplitude, _NEGLIGIBLE))
        return max(0.0, 2 * _decibels(most, amplitude))

    @property
    def is_faster(self) -> bool:
        return self.sure_speed >= self.least

    @property
    def is_accurate(self) -> bool:
        """Whether noise and divergence, which is as its square, grow no more than they may; the latter beyond doubt."""
        grown = self.tried[MORE].accuracy.kl - self.tried[FEWER].accuracy.kl
        doubt = _DOUBT * float(grown.std()) / math.sqrt(max(1, len(grown) - 1))
        allowed = (10 ** (self.allowed_db / 10) - 1) * self.tried[FEWER].kl
        return self.lost_db <= self.allowed_db and float(grown.mean()) - doubt <= allowed

    @property
    def takes_more(self) -> bool:
        """Whether the placement with more quantizers is the better one."""
        return self.is_faster and self.is_accurate

    def as_document(self) -> dict[str, Any]:
        """Return it as plain data; figures that are not finite are null."""
        return {
            "chosen": MORE if self.takes_more else FEWER,
            "ratio": self.speed.median,
            "interval": self.speed.interval,
            "least_ratio": self.least,
            "lost_db": _finite(self.lost_db),
            "allowed_db": _finite(self.allowed_db),
            "images": len(self.tried[FEWER].accuracy.kl),
            "placements": {
                name: {
                    "runtime": self.runtimes[name],
                    "images_per_s": round(median(each.rates), 2),
                    "sqnr_db": _finite(each.sqnr_db),
                    "kl": _finite(each.kl),
                }
                for name, each in self.tried.items()
            },
        }


def compare(found: Found, least: float) -> Comparison:
    """Return how the placements compare, each in the runtime in which it is the fastest.

    Args:
        found: both placements in each of at least one runtime.
        least: as of `Comparison`.
    """
    runtimes = {
        name: max(found, key=lambda runtime, name=name: median(found[runtime][name].rates))  # type: ignore[misc]
        for name in (FEWER, MORE)
    }
    tried = {name: found[runtime][name] for name, runtime in runtimes.items()}
    fewer, more = tried[FEWER].rates, tried[MORE].rates
    if len(fewer) != len(more):  # of runtimes that do not live in one process, one after the other
        return Comparison(least, runtimes, tried, Ratio(median(more) / median(fewer), None))
    return Comparison(least, runtimes, tried, ratio(more, fewer))


def is_clear(least: float, candidates: Sequence[Candidate], rounds: Rounds) -> bool:
    """Tell whether it is clear that the placement with more quantizers is, or is not, fast enough.

    That is asked of each placement in its fastest runtime, and of both in each runtime.

    Args:
        least: times as fast as the other.
        candidates: both placements, named by the file's stem, in some runtimes.
        rounds: by candidate.
    """
    by_name = {
        name: [of for each, of in zip(candidates, rounds, strict=True) if each.model.stem == name]
        for name in (FEWER, MORE)
    }
    pairs = [(max(by_name[FEWER], key=median), max(by_name[MORE], key=median)), *zip(*by_name.values(), strict=True)]
    return all(_is_clear(ratio(more, fewer).interval, least) for fewer, more in pairs)


def _is_clear(interval: tuple[float, float] | None, least: float) -> bool:
    return interval is not None and not interval[0] <= least <= interval[1]


def describe(what: str, found: Mapping[str, Any]) -> str:
    """Return a line on what became of a part of the network, and what that brought and cost.

    Args:
        what: the part, in the plural.
        found: as of `Comparison.as_document`.
    """
    interval = None if found["interval"] is None else (float(found["interval"][0]), float(found["interval"][1]))
    speed = Ratio(float(found["ratio"]), interval)
    chosen, runtime = found["chosen"], found["placements"][MORE]["runtime"]
    beside = found["placements"][FEWER]["runtime"]
    where = runtime if runtime == beside else f"{runtime} (float32: {beside})"
    lost = "an unknown loss" if found["lost_db"] is None else f"{found['lost_db']:.1f} dB"
    if chosen == MORE:
        how = f"{speed} as fast so in {where}, for {lost}"
    elif interval is not None and interval[0] >= found["least_ratio"]:
        how = f"int8 is {speed} as fast in {where}, for {lost}; worth {found['allowed_db']:.1f} dB at the most"
    else:
        how = f"int8 is {speed} as fast in {where}, {found['least_ratio']:g}x is not sure, for {lost}"
    figures = "; ".join(f"{name} {_figures(found['placements'][name])}" for name in (MORE, FEWER))
    return f"{what} are {chosen}: {how} ({figures}; {found['images']} calibration images)"


def _figures(placement: Mapping[str, Any]) -> str:
    sqnr, kl = placement["sqnr_db"], placement["kl"]
    return f"{'-' if sqnr is None else f'{sqnr:.1f}'} dB, KL {'-' if kl is None else f'{kl:.5f}'}"


def _decibels(one: float, other: float) -> float:
    """Return the ratio of two powers in dB; nan where either is, as an answer that is no number makes it."""
    if math.isnan(one) or math.isnan(other):
        return math.nan
    if one == other:
        return 0.0
    return math.inf if not other else -math.inf if not one else 10 * math.log10(one / other)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
