"""Threads that decode beside the event loop."""

from __future__ import annotations

import threading
import weakref

from pipeline.serve.decoders import Decoders


def test_everything_is_done_in_so_many_threads_before_close_returns() -> None:
    decoders, both = Decoders(2), threading.Barrier(2)
    done: list[int] = []
    for _ in range(2):
        decoders.submit(both.wait, 10)  # returns only where two are at work
    for number in range(20):
        decoders.submit(done.append, number)
    decoders.close()
    assert sorted(done) == list(range(20))
    assert not both.broken


def test_what_was_decoded_is_not_held_while_a_thread_waits() -> None:
    class File:
        pass

    decoders, done = Decoders(1), threading.Event()
    file = File()
    gone = weakref.ref(file, lambda _: done.set())
    decoders.submit(lambda _: None, file)
    del file
    assert done.wait(10)
    assert gone() is None
    decoders.close()
