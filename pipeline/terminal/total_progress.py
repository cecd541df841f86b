"""Progress of work in several steps, as one: a line on a terminal with the time that is left of all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipeline.terminal import console
from pipeline.terminal.remaining import Remaining, in_words

_SECONDS_BETWEEN_DRAWS = 0.5


class TotalProgress:
    """Some steps as one piece of work. Made by `whole_work`."""

    def __init__(self, expected_s: Mapping[str, float], what: str) -> None:
        self._what = what
        self._remaining = Remaining(expected_s)
        self._lock = threading.Lock()  # the line is drawn by a thread of its own
        self._begun = time.perf_counter()
        self._label = ""

    def expect(self, expected_s: Mapping[str, float]) -> None:
        """Take better expectations of the steps that are left, in seconds."""
        with self._lock:
            self._remaining.expect(expected_s)

    @contextmanager
    def step(self, name: str, label: str) -> Iterator[None]:
        """Do a step in the body; a label such as "[7/14] calibrate" stands in the line meanwhile."""
        with self._lock:
            self._label = label
            self._remaining.begin(name, time.perf_counter())
        self.draw()
        yield
        with self._lock:
            self._remaining.end(time.perf_counter())
            self._label = ""
        self._report()

    def tell(self, share: float) -> None:
        """Say how much of the present step's work is done, in 0..1."""
        with self._lock:
            self._remaining.tell(share)

    def left(self) -> str:
        """Return about how much time is left, in words."""
        with self._lock:
            return in_words(self._remaining.seconds(time.perf_counter()))

    def draw(self) -> None:
        """Draw the line, between steps without one."""
        if not console.shows_status():
            return
        with self._lock:
            now = time.perf_counter()
            seconds, share = self._remaining.seconds(now), self._remaining.share_of_step
            elapsed, label = now - self._begun, self._label
        if label:
            done = f" {share:.0%}" if share else ""
            whole = elapsed / (elapsed + seconds) if seconds else 1.0
            console.status(f"{label}{done}   {self._what} {whole:.0%}, {in_words(seconds)}")

    def _report(self) -> None:
        """Tell a program that reads JSON lines."""
        if not console.writes_json():
            return
        with self._lock:
            seconds = self._remaining.seconds(time.perf_counter())
        elapsed = time.perf_counter() - self._begun
        done = round(100 * elapsed / (elapsed + seconds), 1)
        console.event("progress", what=self._what, done=done, total=100, unit="%", seconds_left=round(seconds, 1))


_present: TotalProgress | None = None


def present() -> TotalProgress | None:
    """Return the work in several steps that is being done; None for none."""
    return _present


@contextmanager
def whole_work(expected_s: Mapping[str, float], what: str = "all") -> Iterator[TotalProgress]:
    """Do work in several steps in the body, and draw its one line.

    Args:
        expected_s: of each step, in order, about how many seconds it takes.
        what: is done, in a word.
    """
    global _present
    whole, before, ended = TotalProgress(expected_s, what), _present, threading.Event()

    def keep_drawing() -> None:
        while not ended.wait(_SECONDS_BETWEEN_DRAWS):
            whole.draw()

    drawer = threading.Thread(target=keep_drawing, daemon=True)
    _present = whole
    if console.shows_status():
        drawer.start()
    try:
        yield whole
    finally:
        _present = before
        ended.set()
        if drawer.ident is not None:
            drawer.join()
        console.status("")


class Part:
    """Takes the place of a bar: what is done of a part of a step goes into the line of the whole work."""

    def __init__(
        self, whole: TotalProgress, total: float | None, done: float, span: tuple[float, float] | None
    ) -> None:
        self._whole, self._span = whole, span
        self.n, self.total = done, total
        self.update(0)

    def update(self, n: float = 1) -> None:
        self.n += n
        if self._span is not None and self.total:
            first, last = self._span
            self._whole.tell(first + (last - first) * min(1.0, self.n / self.total))

    def unpause(self) -> None:
        """Nothing: the time of a step counts from its beginning."""

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing: the step ends when its stage does."""
