"""Progress of long work: a bar with rate and remaining time on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tqdm import tqdm

from pipeline.terminal import console
from pipeline.terminal.total_progress import Part, present

_SECONDS_BETWEEN_LINES = 15.0


class Bar(Protocol):
    """What is told of work that is done: a bar of tqdm, or a part of the line of the whole work."""

    n: float  # done
    total: float | None

    def update(self, n: float = 1) -> object: ...

    def unpause(self) -> None: ...


def progress_bar(
    total: float | None,
    what: str,
    unit: str,
    done: float = 0,
    *,
    scaled: bool = False,
    shown: bool = True,
    span: tuple[float, float] | None = None,
) -> AbstractContextManager[Bar]:
    """Return a bar on standard error; use it in a `with`.

    In work of several steps (`whole_work`) no bar is drawn: the line of the whole stands for all of them.

    Args:
        total: units of the whole work; None if it is limited by time.
        what: what is being done, in a word or two.
        unit: of the count, such as "img".
        done: units that an earlier run did.
        scaled: show counts as 1.5M; for bytes.
        shown: False for none at all.
        span: in work of several steps, from where to where in the present step's work this goes, in 0..1.
    """
    whole = present()
    if whole is not None and not console.writes_json():
        return Part(whole, total, done, span)
    on_terminal = sys.stderr.isatty()
    kind: type[tqdm[Any]] = _JsonBar if console.writes_json() else tqdm
    return kind(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=scaled,
        mininterval=0.1 if on_terminal and not console.writes_json() else _SECONDS_BETWEEN_LINES,
        maxinterval=10 if on_terminal else _SECONDS_BETWEEN_LINES,
        # A log file has no cursor to move back: every state is a separate line.
        file=sys.stderr if on_terminal else _Lines(),
        dynamic_ncols=on_terminal,
        disable=not shown or console.is_quiet(),
    )


class _JsonBar(tqdm):  # type: ignore[type-arg]
    """Writes its state as a JSON line instead of drawing a bar."""

    def display(self, *_: object, **__: object) -> bool:  # type: ignore[override]  # of the stubs; tqdm returns True
        state = self.format_dict
        rate = state["rate"] or (state["n"] / state["elapsed"] if state["elapsed"] else None)
        left = (state["total"] - state["n"]) / rate if rate and state["total"] else None
        console.event(
            "progress",
            what=state["prefix"],
            done=state["n"],
            total=state["total"],
            unit=state["unit"],
            per_second=None if rate is None else round(rate, 3),
            seconds_left=None if left is None else round(left, 1),
        )
        return True


class _Lines:
    """Standard error with line feeds in place of carriage returns."""

    def write(self, text: str) -> None:
        content = text.strip("\r\n")
        if content.strip():
            sys.stderr.write(f"{content}\n")

    def flush(self) -> None:
        sys.stderr.flush()
