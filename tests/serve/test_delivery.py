"""Answers on their way from threads to the event loop, and to other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from pipeline.serve.delivery import ToLoop, ToThreads

ROWS = [np.full((1, 2), number, np.float32) for number in range(3)]


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)


def test_a_batch_of_answers_wakes_the_event_loop_up_once() -> None:
    async def ask() -> list[Any]:
        loop, delivery = asyncio.get_running_loop(), ToLoop()
        futures = [delivery.future() for _ in ROWS]
        calls: list[Any] = []
        wake, loop.call_soon_threadsafe = loop.call_soon_threadsafe, lambda *args: calls.append(args)  # type: ignore
        in_a_thread(lambda: delivery.settle(list(zip(futures, ROWS, strict=True))))
        loop.call_soon_threadsafe = wake  # type: ignore[method-assign]
        assert len(calls) == 1
        assert not any(future.done() for future in futures)  # it is the loop that settles them
        wake(*calls[0])
        return await asyncio.wait_for(asyncio.gather(*futures), 10)

    for found, wanted in zip(asyncio.run(ask()), ROWS, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_failures_and_ends_reach_who_waits_and_the_first_outcome_stays() -> None:
    async def ask() -> None:
        delivery = ToLoop()
        failing, ending, left, answered = (delivery.future() for _ in range(4))
        left.cancel()  # as a client does that leaves
        outcomes: list[tuple[Any, Any]] = [
            (failing, ValueError("damaged")),
            (ending, CancelledError()),
            (left, ROWS[0]),
            (answered, ROWS[1]),
        ]
        in_a_thread(lambda: delivery.settle([*outcomes, (failing, ValueError("again")), (answered, ROWS[2])]))
        with pytest.raises(ValueError, match="damaged"):
            await asyncio.wait_for(failing, 10)
        for each in (ending, left):
            with pytest.raises(asyncio.CancelledError):
                await each
        np.testing.assert_array_equal(await answered, ROWS[1])

    asyncio.run(ask())


def test_threads_are_answered_at_once() -> None:
    delivery = ToThreads()
    answered, failing, ending = (delivery.future() for _ in range(3))
    outcomes: list[tuple[Any, Any]] = [
        (answered, ROWS[1]),
        (failing, ValueError("damaged")),
        (ending, CancelledError()),
        (answered, ROWS[2]),
    ]
    delivery.settle(outcomes)
    np.testing.assert_array_equal(answered.result(0), ROWS[1])
    with pytest.raises(ValueError, match="damaged"):
        failing.result(0)
    with pytest.raises(CancelledError):
        ending.result(0)
