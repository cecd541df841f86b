from __future__ import annotations

import numpy as np
import pytest

from pipeline.run.performance import Recorder, keep_while_all_busy
from pipeline.run.plan import Ready, Request, StageTimes
from pipeline.runtimes.base import Placement

BATCH = 22


def simulate(
    streams: int, instances: int, service_s: float, duration_s: float, begun: float = 100.0, skew_s: float = 0.0
) -> list[Request]:
    """Return the requests of a closed loop, first come first served, that starts none after `duration_s`.

    Args:
        skew_s: how much later than the first each further stream begins.
    """
    in_flight = [begun] * instances
    free = [begun + skew_s * stream for stream in range(streams)]
    requests = []
    while min(free) < begun + duration_s:
        stream = int(np.argmin(free))
        submitted = in_flight.pop(0)
        free[stream] = max(free[stream], submitted) + service_s
        in_flight.append(free[stream])
        requests.append(Request(submitted, free[stream], BATCH))
    return requests


def recorder(requests: list[Request], streams: int) -> Recorder:
    record = Recorder()
    record(Ready("openvino", "2025.1", Placement(streams, streams)))
    for request in requests:
        record(request)
    return record


@pytest.mark.parametrize("streams", [1, 2, 3, 8])
@pytest.mark.parametrize("waiting", [0, 1, 6])
@pytest.mark.parametrize("duration_s", [10.0, 9.99, 10.01, 3.3])
def test_throughput_of_a_run_ended_by_time_is_that_of_busy_streams(
    streams: int, waiting: int, duration_s: float
) -> None:
    requests = simulate(streams, streams + waiting, 0.5, duration_s)
    figures = recorder(requests, streams).summarize(100.0, steady=True)
    assert figures.throughput == pytest.approx(streams * BATCH / 0.5)
    assert figures.throughput == pytest.approx(figures.images / figures.seconds, rel=1e-3)


@pytest.mark.parametrize("skew_s", [0.1, 0.25, 0.4])
def test_throughput_never_says_more_than_the_streams_can_do(skew_s: float) -> None:
    figures = recorder(simulate(2, 5, 0.5, 10.0, skew_s=skew_s), 2).summarize(100.0, steady=True)
    most = 2 * BATCH / 0.5
    assert 0.94 * most < figures.throughput <= most


def test_throughput_of_few_slow_rounds_is_right() -> None:
    # Seven in flight on two streams and a duration below one request: once this came out at half of the truth.
    requests = simulate(2, 7, 5.0, 15.1)
    assert len(requests) == 8
    assert recorder(requests, 2).summarize(100.0, steady=True).throughput == pytest.approx(2 * BATCH / 5.0)


def test_throughput_of_counted_iterations_covers_all_of_them() -> None:
    requests = [Request(0.0, 1.0, 4), Request(0.0, 1.0, 4), Request(1.0, 2.0, 4)]
    figures = recorder(requests, 2).summarize(0.0, steady=False)
    assert (figures.images, figures.seconds, figures.throughput) == (12, 2.0, 6.0)


@pytest.mark.parametrize(
    ("finished", "streams", "kept"), [(8, 2, 6), (7, 2, 6), (8, 1, 8), (3, 2, 2), (2, 2, 2), (1, 4, 1)]
)
def test_while_all_busy_keeps_whole_rounds(finished: int, streams: int, kept: int) -> None:
    requests = [Request(0.0, float(end), 1) for end in range(finished)]
    assert keep_while_all_busy(requests, streams) == requests[:kept]


def test_latency_is_ordered_and_that_of_numpy() -> None:
    latencies = np.random.default_rng(0).gamma(2, 0.1, 57)
    figures = recorder([Request(1.0, 1.0 + float(x), 1) for x in latencies], 1).summarize(0.0, steady=False)
    found = figures.latency_ms
    assert list(found) == ["min", "mean", "p50", "p90", "p95", "p99", "max"]
    ranks = [found[name] for name in ("min", "p50", "p90", "p95", "p99", "max")]
    np.testing.assert_allclose(ranks, np.percentile(latencies * 1e3, [0, 50, 90, 95, 99, 100]), atol=1e-3)
    assert ranks == sorted(ranks)
    assert found["mean"] == pytest.approx(latencies.mean() * 1e3, abs=1e-3)


def test_stage_seconds_are_added_up() -> None:
    record = recorder([Request(0.0, 1.0, 1)], 1)
    assert record.summarize(0.0, steady=False).stage_seconds is None
    record(StageTimes(read=1.0, preprocess=2.0, infer=3.0, write=4.0))
    record(StageTimes(read=0.5, preprocess=0.25, infer=0.0, write=0.0))
    figures = record.summarize(0.0, steady=False)
    assert figures.stage_seconds == {"read": 1.5, "preprocess": 2.25, "infer": 3.0, "write": 4.0}
    assert figures.workers == [{"runtime": "openvino", "version": "2025.1", "streams": 1, "threads": 1}]
