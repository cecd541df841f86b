"""Waits for what clients send, of which each has the same time."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest

pytest.importorskip("grpc", reason="serve's packages are not installed: pip install '.[serve]'")
from pipeline.serve.patience import Patience


async def waiting(patience: Patience, receiving: Any) -> tuple[object, float]:
    """Return what came, or the exception's type, and after how many seconds."""
    begun = time.monotonic()
    try:
        found: object = await patience.wait_for(receiving)
    except (asyncio.TimeoutError, asyncio.CancelledError, ValueError) as err:
        found = type(err)
    return found, time.monotonic() - begun


async def fail() -> None:
    raise ValueError


def test_a_wait_ends_after_its_time_and_not_with_the_first_ones() -> None:
    async def run() -> list[tuple[object, float]]:
        patience = Patience(0.3)
        first = asyncio.create_task(waiting(patience, asyncio.Event().wait()))
        await asyncio.sleep(0.15)
        others = [
            asyncio.create_task(waiting(patience, each))
            for each in (asyncio.Event().wait(), asyncio.sleep(0.2, "came"), fail())
        ]
        return list(await asyncio.gather(first, *others))

    first, second, third, fourth = asyncio.run(run())
    assert (first[0], second[0], third[0], fourth[0]) == (
        asyncio.TimeoutError,
        asyncio.TimeoutError,
        "came",
        ValueError,
    )
    assert first[1] >= 0.29 and second[1] >= 0.29 and third[1] < second[1]


def test_a_wait_that_somebody_else_cancels_stays_cancelled() -> None:
    async def run() -> tuple[object, float]:
        task = asyncio.create_task(waiting(Patience(60.0), asyncio.Event().wait()))
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(run())[0] is asyncio.CancelledError


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not count there how often it is cancelled")
def test_a_wait_that_somebody_else_cancels_when_its_time_is_over_stays_cancelled() -> None:
    async def run(somebody_is_first: bool) -> tuple[object, float]:
        patience = Patience(0.05)
        task = asyncio.create_task(waiting(patience, asyncio.Event().wait()))
        await asyncio.sleep(0)
        time.sleep(0.1)  # the timer is due in the loop's next round
        if somebody_is_first:
            task.cancel()
        else:
            asyncio.get_running_loop().call_later(0.0, task.cancel)  # behind the timer, in the same round
        return await task

    assert [asyncio.run(run(first))[0] for first in (True, False)] == [asyncio.CancelledError] * 2


def test_a_task_goes_on_after_its_time_and_may_wait_again() -> None:
    async def run() -> list[object]:
        patience, found = Patience(0.05), []
        for receiving in (asyncio.Event().wait(), asyncio.sleep(0, "came"), asyncio.Event().wait()):
            found.append((await waiting(patience, receiving))[0])
        await asyncio.sleep(0.1)  # no timer is left that cancels what follows
        return found

    assert asyncio.run(run()) == [asyncio.TimeoutError, "came", asyncio.TimeoutError]
