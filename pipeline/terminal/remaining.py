"""How long the rest of some steps takes: what each is expected to take, and how this run compares with that so far."""

from __future__ import annotations

from collections.abc import Mapping

_TRUST_S = 10.0  # of expectations: so many seconds have to be measured before a run's own pace counts half


class Remaining:
    """The steps that are left of some work, in order, with the seconds that each is expected to take.

    Expectations are of another machine, so they are scaled by this run's pace: the seconds that were measured over
    those that were expected, of the finished steps and the finished part of the present one.
    """

    def __init__(self, expected_s: Mapping[str, float]) -> None:
        self._expected = dict(expected_s)
        self._left = list(expected_s)
        self._now = ""  # the present step
        self._begun = self._share = 0.0
        self._measured_s = self._expected_s = 0.0  # of the finished steps

    def expect(self, expected_s: Mapping[str, float]) -> None:
        """Take better expectations, of steps that are not finished."""
        self._expected.update({name: seconds for name, seconds in expected_s.items() if name in self._left})

    def begin(self, step: str, now: float) -> None:
        """Begin a step, at a time in seconds; one that was not expected takes no time."""
        self._now, self._begun, self._share = step, now, 0.0
        if step not in self._left:
            self._left.insert(0, step)
            self._expected.setdefault(step, 0.0)

    def tell(self, share: float) -> None:
        """Say how much of the present step's work is done, in 0..1; what is less than before is not believed."""
        self._share = min(1.0, max(self._share, share))

    def end(self, now: float) -> None:
        """End the present step."""
        self._measured_s += now - self._begun
        self._expected_s += self._expected[self._now]
        self._left.remove(self._now)
        self._now = ""

    @property
    def share_of_step(self) -> float:
        return self._share

    def seconds(self, now: float) -> float:
        """Return how many seconds are left.

        Of the present step, that is what is expected of it where it has just begun, and what its own pace gives when
        it is nearly done. A step that does not say how far it is has a tenth of its time left, at the least.
        """
        pace = self._pace(now)
        later = sum(self._expected[name] for name in self._left if name != self._now)
        if not self._now:
            return pace * later
        expected, elapsed, share = pace * self._expected[self._now], now - self._begun, self._share
        if share > 0:
            own = elapsed / share  # the whole of this step, by its own pace
            return pace * later + (1 - share) * ((1 - share) * expected + share * own)
        return pace * later + max(expected - elapsed, elapsed / 10)

    def _pace(self, now: float) -> float:
        measured, expected = self._measured_s, self._expected_s
        if self._now and self._share > 0:
            measured += now - self._begun
            expected += self._share * self._expected[self._now]
        return (_TRUST_S + measured) / (_TRUST_S + expected)


def in_words(seconds: float) -> str:
    """Return about how much time is left, no finer than it is known."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {10 * round(seconds / 10)} s left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {10 * (minutes % 60 // 10)} min left"
