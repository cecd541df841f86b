"""The queue before a model: batches, order, failures, limits, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.errors import BackendError
from pipeline.runtimes.base import Batch, Output, Placement, Runtime, TensorSpec
from pipeline.runtimes.opening import open_backend, place

pytest.importorskip("prometheus_client", reason="serve's packages are not installed: pip install '.[serve]'")
from pipeline.serve.batching import Batcher, BusyError
from pipeline.serve.delivery import Settled, ToThreads
from pipeline.serve.metrics import Meter

SHAPE = (3, 32, 32)


class Gated:
    """A backend that answers with the images' means when its gate is open, and remembers the batches it saw."""

    name, version = "gated", "0"
    input = TensorSpec("image", "float32", (None, *SHAPE))
    output = TensorSpec("mean", "float32", (None, 1))

    def __init__(self, streams: int = 1) -> None:
        self.placement = Placement(streams, streams)
        self.gate = threading.Event()
        self.at_work = threading.Event()
        self.batches: list[int] = []
        self.fails: Callable[[Batch], bool] = lambda batch: False

    def infer(self, batch_nchw: Batch) -> Output:
        self.at_work.set()
        assert self.gate.wait(10)
        self.batches.append(len(batch_nchw))
        if self.fails(batch_nchw):
            raise BackendError("refused")
        means: npt.NDArray[np.float32] = batch_nchw.mean(axis=(1, 2, 3), dtype=np.float32)
        return means[:, None]

    def close(self) -> None:
        pass


def image(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


@pytest.fixture
def gated() -> Iterator[Gated]:
    backend = Gated()
    yield backend
    backend.gate.set()


def at_work(gated: Gated, batch: int, limit: int = 100) -> tuple[Batcher, Future[Output]]:
    """Return a batcher whose only stream is busy with a first image, so that all others wait."""
    batcher = Batcher(gated, gated, batch, limit, Meter("gated"))
    first = batcher.submit([image(-1)])
    assert gated.at_work.wait(10)
    return batcher, first


def test_what_waits_is_computed_in_full_batches_and_what_is_left_one_by_one(gated: Gated) -> None:
    batcher, _ = at_work(gated, batch=4)
    calls = [batcher.submit([image(number)]) for number in range(10)]
    gated.gate.set()
    assert [float(call.result(10)[0, 0]) for call in calls] == list(range(10))
    batcher.close()
    assert gated.batches == [1, 4, 4, 1, 1]


def test_a_request_of_many_images_is_answered_in_their_order(gated: Gated) -> None:
    batcher, _ = at_work(gated, batch=4)
    calls = [batcher.submit([image(10 * call + number) for number in range(3)]) for call in range(3)]
    gated.gate.set()
    for number, call in enumerate(calls):
        assert call.result(10)[:, 0].tolist() == [10 * number, 10 * number + 1, 10 * number + 2]
    batcher.close()


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(gated: Gated) -> None:
    batcher, first = at_work(gated, batch=4, limit=2)
    batcher.submit([image(1)])
    with pytest.raises(BusyError):
        batcher.submit([image(2), image(3)])
    batcher.submit([image(2)])
    with pytest.raises(BusyError):
        batcher.submit([image(3)])
    gated.gate.set()
    first.result(10)
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit([image(4)])


def test_room_is_kept_for_images_that_are_expected_until_they_come_or_are_given_up(gated: Gated) -> None:
    batcher, first = at_work(gated, batch=4, limit=3)
    call = batcher.expect(3)
    with pytest.raises(BusyError):
        batcher.submit([image(1)])
    batcher.put(call, 2, image(2))
    with pytest.raises(BusyError):
        batcher.submit([image(1)])
    batcher.give_up(call)  # its client has left
    other = batcher.submit([image(1)])
    with pytest.raises(BusyError):  # one waits, one is expected, one is this
        batcher.submit([image(1)])
    gated.gate.set()
    first.result(10)
    assert float(other.result(10)[0, 0]) == 1
    batcher.close()


def test_an_image_that_fails_frees_the_room_of_its_whole_request_at_once(gated: Gated) -> None:
    batcher, first = at_work(gated, batch=4, limit=3)
    call = batcher.expect(3)
    batcher.put(call, 2, image(2))
    batcher.give_up(call, ValueError("damaged"))
    with pytest.raises(ValueError, match="damaged"):
        call.future.result(0)  # at once: the other images are not waited for
    others = [batcher.submit([image(number)]) for number in range(3)]
    batcher.give_up(call, ValueError("damaged too"))  # what comes of it later takes no room and frees none
    batcher.put(call, 1, image(1))
    with pytest.raises(BusyError):
        batcher.submit([image(1)])
    gated.gate.set()
    first.result(10)
    assert [float(each.result(10)[0, 0]) for each in others] == [0, 1, 2]
    batcher.submit([image(5), image(6), image(7)]).result(10)
    batcher.close()
    assert sum(gated.batches) == 1 + 3 + 3


def test_images_that_come_one_by_one_are_answered_in_their_order(gated: Gated) -> None:
    gated.gate.set()
    batcher = Batcher(gated, gated, 4, 10, Meter("gated"))
    call = batcher.expect(3)
    for number in (2, 0, 1):
        batcher.put(call, number, image(number))
    assert call.future.result(10)[:, 0].tolist() == [0, 1, 2]
    batcher.close()


def test_an_image_that_comes_after_the_end_is_not_waited_for(gated: Gated) -> None:
    gated.gate.set()
    batcher = Batcher(gated, gated, 4, 10, Meter("gated"))
    call = batcher.expect(1)
    batcher.close()
    batcher.put(call, 0, image(1))
    with pytest.raises(CancelledError):
        call.future.result(0)


def test_a_failure_reaches_every_request_of_the_batch_and_no_other(gated: Gated) -> None:
    gated.fails = lambda batch: bool((batch == 7).any())
    batcher, _ = at_work(gated, batch=2)
    calls = [batcher.submit([image(number)]) for number in (6, 7, 8, 9)]
    gated.gate.set()
    for call in calls[:2]:
        with pytest.raises(BackendError, match="refused"):
            call.result(10)
    assert [float(call.result(10)[0, 0]) for call in calls[2:]] == [8, 9]
    batcher.close()


def test_nan_is_an_error_of_its_request_alone(gated: Gated) -> None:
    batcher, _ = at_work(gated, batch=2)
    calls = [batcher.submit([image(value)]) for value in (float("nan"), 5)]
    gated.gate.set()
    with pytest.raises(BackendError, match="NaN"):
        calls[0].result(10)
    assert float(calls[1].result(10)[0, 0]) == 5
    batcher.close()


class Later(ToThreads):
    """A delivery that takes its time, as the event loop does, and remembers how many it was given at once."""

    def __init__(self) -> None:
        self.given: list[Settled] = []

    def settle(self, settled: Settled) -> None:
        self.given.append(settled)


def test_images_of_a_request_that_has_failed_are_not_computed_before_the_loop_knows_it(gated: Gated) -> None:
    later = Later()
    batcher = Batcher(gated, gated, 4, 10, Meter("gated"), later)
    batcher.submit([image(-1)])
    assert gated.at_work.wait(10)
    call = batcher.expect(3)
    batcher.put(call, 0, image(0))
    assert not call.is_over
    batcher.give_up(call, ValueError("damaged"))
    assert call.is_over
    assert not call.future.done()
    batcher.put(call, 2, image(2))
    gated.gate.set()
    batcher.close()
    assert gated.batches == [1]


@pytest.mark.parametrize("images", [6, 80])
def test_answers_are_delivered_together_while_eight_times_as_many_images_wait(gated: Gated, images: int) -> None:
    later = Later()
    batcher = Batcher(gated, gated, 2, 100, Meter("gated"), later)
    batcher.submit([image(-1)])
    assert gated.at_work.wait(10)
    calls = [batcher.submit([image(number)]) for number in range(images)]
    gated.gate.set()
    while sum(map(len, later.given)) <= images:
        time.sleep(0.01)
    batcher.close()
    delivered = [pair for settled in later.given for pair in settled]
    assert [id(future) for future, _ in delivered[1:]] == [id(call) for call in calls]
    assert [float(np.asarray(rows)[0, 0]) for _, rows in delivered[1:]] == list(range(images))
    answered = 0
    for count in map(len, later.given):
        answered += count
        waiting = 1 + images - answered
        assert count >= min(8, waiting / 8)
        assert count - 2 < min(8, (waiting + 2) / 8)  # without the last batch there were not enough
    assert max(map(len, later.given)) == (9 if images == 80 else 2)


def test_a_cancelled_request_is_not_computed(gated: Gated) -> None:
    batcher, _ = at_work(gated, batch=4)
    call = batcher.submit([image(1)])
    assert call.cancel()
    gated.gate.set()
    batcher.close()
    assert gated.batches == [1]
    with pytest.raises(CancelledError):
        call.result()


def test_closing_ends_what_computes_and_gives_up_what_waits(gated: Gated) -> None:
    batcher, first = at_work(gated, batch=4)
    calls = [batcher.submit([image(number)]) for number in range(9)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(CancelledError):
        calls[-1].result(10)
    gated.gate.set()
    closing.join(10)
    assert float(first.result(0)[0, 0]) == -1
    assert all(call.cancelled() for call in calls)
    assert gated.batches == [1]


@pytest.mark.parametrize("runtime", [pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino), Runtime.ONNXRUNTIME])
def test_many_threads_get_the_answers_of_the_model_itself(runtime: Runtime, tiny_model: Path) -> None:
    images = np.random.default_rng(0).normal(0, 1, (60, *SHAPE)).astype(np.float32)
    placement = place(2, 2)
    with (
        open_backend(runtime, tiny_model, batch=4, placement=placement) as full,
        open_backend(runtime, tiny_model, batch=1, placement=placement) as single,
    ):
        wanted = np.concatenate([single.infer(each[None]) for each in images])
        batcher = Batcher(full, single, 4, 100, Meter("tiny"))
        found: dict[int, Output] = {}

        def client(number: int) -> None:
            for index in range(number, 60, 6):
                found[index] = batcher.submit([images[index]]).result(10)[0]

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batcher.close()
    np.testing.assert_allclose(np.stack([found[index] for index in range(60)]), wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def tiny_model(tiny_workspace_master: object) -> Path:
    return tiny_workspace_master.package.model  # type: ignore[attr-defined,no-any-return]
