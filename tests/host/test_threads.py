from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.host.threads import wait_for_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc on Linux alone")


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
