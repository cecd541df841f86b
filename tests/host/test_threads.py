from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.host.threads import one_ahead, thread_pool, wait_for_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc on Linux alone")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_one_ahead_computes_the_next_while_one_is_used_and_no_more(count: int) -> None:
    begun: list[int] = []

    def square(item: int) -> int:
        begun.append(item)
        return item * item

    with thread_pool(4) as pool:
        for item, found in enumerate(one_ahead(pool, square, range(count))):
            assert found == item * item
            assert len(begun) <= item + 2
    assert begun == list(range(count))


def test_one_ahead_raises_what_the_function_raises_where_its_item_comes() -> None:
    with thread_pool(1) as pool:
        coming = one_ahead(pool, [10, 20].__getitem__, range(3))
        assert [next(coming), next(coming)] == [10, 20]
        with pytest.raises(IndexError):
            next(coming)


def test_wait_for_end_returns_when_joined_threads_are_gone() -> None:
    for _ in range(20):
        threads = [threading.Thread(target=sum, args=([1, 2],)) for _ in range(10)]
        for thread in threads:
            thread.start()
        native_ids = [thread.native_id for thread in threads if thread.native_id is not None]
        for thread in threads:
            thread.join()
        wait_for_end(native_ids)
        assert [each for each in native_ids if Path(f"/proc/self/task/{each}").exists()] == []


def test_wait_for_end_does_not_wait_for_a_thread_that_runs() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    assert thread.native_id is not None
    begun = time.perf_counter()
    wait_for_end([thread.native_id, threading.get_native_id()])
    assert time.perf_counter() - begun < 0.5
    ended.set()
    thread.join()
