from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from run_fixtures import IMAGES, NAME, SPEC, TinyWorkspace, draw, plain_answers, read_folder

from pipeline.config.vdsp import PreprocessSpec, ResizeMode
from pipeline.data import npz
from pipeline.errors import BackendError, DataError
from pipeline.run.plan import Entry, Limit, Message, Plan, Ready, Request, StageTimes
from pipeline.run.plan import Report as Reports
from pipeline.run.runner import infer_requests, list_unanswered, measure
from pipeline.runtimes.base import Runtime


def plan_for(space: TinyWorkspace, **changes: object) -> Plan:
    values = {"model": space.folder / f"{NAME}.onnx", "runtime": Runtime.ONNXRUNTIME, "spec": SPEC, "cores": 2}
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def infer_entries(plan: Plan, entries: Sequence[Entry], on_message: Reports) -> float:
    return infer_requests(plan, list_unanswered(entries, plan.batch), on_message)


def entries_of(images: Sequence[Path], out: Path) -> list[Entry]:
    out.mkdir(exist_ok=True)
    return [Entry(image, out / f"{index:04d}.npz") for index, image in enumerate(images)]


def answers(entries: Sequence[Entry]) -> np.ndarray:
    return np.concatenate([npz.read_result_npz(entry.result) for entry in entries])


@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino)])
@pytest.mark.parametrize(
    ("batch", "instances", "processes"), [(1, 1, 1), (5, 3, 1), (22, 8, 1), (IMAGES, 1, 1), (64, 2, 1), (4, 3, 2)]
)
def test_infer_requests_equals_a_plain_loop(
    tiny: TinyWorkspace, tmp_path: Path, runtime: Runtime, batch: int, instances: int, processes: int
) -> None:
    entries = entries_of(tiny.images, tmp_path / "out")
    messages: list[Message] = []
    plan = plan_for(tiny, runtime=runtime, batch=batch, instances=instances, processes=processes)
    infer_entries(plan, entries, messages.append)
    expected = plain_answers(tiny.package, tiny.images)
    # A requantized activation that lies between two integers may round either way.
    np.testing.assert_allclose(answers(entries), expected, atol=1e-6 if runtime is Runtime.ONNXRUNTIME else 0.05)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [entry.result.name for entry in entries]
    finished = [message for message in messages if isinstance(message, Request)]
    assert sum(request.images for request in finished) == IMAGES
    assert len(finished) == -(-IMAGES // batch)
    assert all(request.submitted < request.finished for request in finished)
    assert sum(isinstance(message, Ready) for message in messages) == processes
    assert sum(isinstance(message, StageTimes) for message in messages) == len(finished)


def test_infer_requests_does_what_is_missing_in_requests_of_the_first_time(tiny: TinyWorkspace, tmp_path: Path) -> None:
    entries = entries_of(tiny.images, tmp_path / "out")
    infer_entries(plan_for(tiny, batch=4), entries, lambda message: None)
    whole = read_folder(tmp_path / "out")
    for index in (5, 6, 22):
        entries[index].result.unlink()
    assert [list(request) for request in list_unanswered(entries, 4)] == [entries[4:8], entries[20:23]]
    messages: list[Message] = []
    infer_entries(plan_for(tiny, batch=4), entries, messages.append)
    assert sum(message.images for message in messages if isinstance(message, Request)) == 7
    assert read_folder(tmp_path / "out") == whole


def test_infer_requests_loads_no_model_when_all_is_done(tiny: TinyWorkspace, tmp_path: Path) -> None:
    entries = entries_of(tiny.images, tmp_path / "out")
    for entry in entries:
        (tmp_path / "out" / entry.result.name).touch()
    infer_entries(plan_for(tiny, model=Path("no such model")), entries, lambda message: pytest.fail(str(message)))


@pytest.mark.parametrize("processes", [1, 2])
def test_infer_requests_names_the_damaged_image(tiny: TinyWorkspace, tmp_path: Path, processes: int) -> None:
    images = tiny.images
    damaged = images[9]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(DataError) as raised:
        infer_entries(
            plan_for(tiny, batch=2, instances=2, processes=processes),
            entries_of(images, tmp_path / "out"),
            lambda message: None,
        )
    assert str(raised.value).startswith(f"{damaged}: not a readable npz file")
    assert "\n" not in str(raised.value)


def test_infer_requests_names_the_image_that_cannot_be_prepared(tiny: TinyWorkspace, tmp_path: Path) -> None:
    small = tiny.images[3]
    npz.write_image_npz(small, draw(0, 20, 20))
    spec = PreprocessSpec(resize=ResizeMode.NONE, resize_hw=None, crop_hw=(32, 32), crop_yx=None, synthetic_hw=(32, 32))
    with pytest.raises(DataError) as raised:
        infer_entries(plan_for(tiny, spec=spec), entries_of(tiny.images, tmp_path / "out"), lambda message: None)
    assert str(raised.value) == f"{small}: image: 20 x 20 is smaller than the crop 32 x 32 [height x width]"


def test_infer_requests_refuses_an_answer_that_is_not_finite(tiny: TinyWorkspace, tmp_path: Path) -> None:
    spec = PreprocessSpec(**{**vars(SPEC), "mean": (float("nan"),) * 3})
    entries = entries_of(tiny.images[:3], tmp_path / "out")
    with pytest.raises(BackendError) as raised:
        infer_entries(plan_for(tiny, spec=spec, model=tiny.float32_model, batch=3), entries, lambda message: None)
    assert str(raised.value) == f"{entries[0].image}: the model's output holds NaN or Inf"
    assert list((tmp_path / "out").iterdir()) == []


def test_infer_requests_says_where_a_result_cannot_be_written(tiny: TinyWorkspace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    entry = Entry(tiny.images[0], tmp_path / "file" / "0.npz")
    with pytest.raises(DataError) as raised:
        infer_entries(plan_for(tiny), [entry], lambda message: None)
    assert str(raised.value) == f"{entry.result}: cannot be written (File exists); fix that, then run again"


@pytest.mark.parametrize(
    ("iterations", "instances", "processes"), [(1, 1, 1), (7, 3, 1), (2, 8, 1), (1, 2, 2), (5, 4, 2)]
)
def test_measure_runs_the_iterations_exactly(
    tiny: TinyWorkspace, iterations: int, instances: int, processes: int
) -> None:
    messages: list[Message] = []
    plan = plan_for(tiny, batch=3, instances=instances, processes=processes)
    begun = measure(plan, Limit(iterations=iterations), messages.append)
    requests = [message for message in messages if isinstance(message, Request)]
    assert [request.images for request in requests] == [3] * iterations
    assert all(begun <= request.finished for request in requests)
    assert sum(isinstance(message, Ready) for message in messages) == min(processes, iterations)


def test_measure_keeps_to_the_duration_however_many_are_in_flight(tiny: TinyWorkspace) -> None:
    messages: list[Message] = []
    begun = measure(plan_for(tiny, batch=64, instances=200), Limit(duration_s=0.3), messages.append)
    ends = [message.finished - begun for message in messages if isinstance(message, Request)]
    assert len(ends) >= 8
    # A request takes 2 ms; a busy machine may take a few times as long, but not two hundred requests.
    assert 0.2 < max(ends) < 2


def test_measure_serves_the_requests_in_turn(tiny: TinyWorkspace) -> None:
    messages: list[Message] = []
    measure(plan_for(tiny, batch=16, instances=8), Limit(iterations=200), messages.append)
    requests = [message for message in messages if isinstance(message, Request)]
    ends = np.sort([request.finished for request in requests])
    served = np.searchsorted(ends, [r.finished for r in requests]) - np.searchsorted(
        ends, [r.submitted for r in requests]
    )
    # Eight are in flight, so a request ends after the seven before it; where threads compete it is one or two.
    assert 6 <= np.median(served) <= 9


def test_measure_runs_some_rounds_when_the_duration_is_shorter_than_one(tiny: TinyWorkspace) -> None:
    messages: list[Message] = []
    measure(plan_for(tiny, instances=7), Limit(duration_s=1e-9), messages.append)
    assert sum(isinstance(message, Request) for message in messages) == 8  # four for each of two streams


def test_measure_stops_all_streams_when_one_fails(tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.runtimes.ort import OnnxRuntimeBackend

    infer, calls = OnnxRuntimeBackend.infer, itertools.count()

    def fail_once(backend: OnnxRuntimeBackend, batch: np.ndarray) -> np.ndarray:
        if next(calls) == 20:
            raise BackendError("it broke")
        return infer(backend, batch)

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", fail_once)
    with pytest.raises(BackendError, match="it broke"):
        measure(plan_for(tiny, batch=8, instances=4), Limit(duration_s=3600), lambda message: None)


@pytest.mark.parametrize(
    ("instances", "processes", "cores", "shares"),
    [
        (8, 1, 2, [(8, 2)]),
        (8, 2, 2, [(4, 1), (4, 1)]),
        (3, 2, 5, [(2, 3), (1, 2)]),
        (1, 3, 2, [(1, 1), (1, 1), (1, 1)]),
        (7, 3, 8, [(3, 3), (2, 3), (2, 2)]),
    ],
)
def test_share_hands_out_all_instances_and_cores(
    tiny: TinyWorkspace, instances: int, processes: int, cores: int, shares: list[tuple[int, int]]
) -> None:
    plan = plan_for(tiny, instances=instances, processes=processes, cores=cores)
    parts = [plan.share(worker) for worker in range(processes)]
    assert [(part.instances, part.cores) for part in parts] == shares
    assert {part.processes for part in parts} == {1}


sharing = pytest.mark.skipif(sys.platform != "linux", reason="models are shared on Linux alone")


@sharing
@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino)])
@pytest.mark.parametrize(
    ("instances", "cores", "shares"),
    [
        (2, 2, True),
        pytest.param(3, 2, True, marks=pytest.mark.slow),
        pytest.param(6, 4, True, marks=pytest.mark.slow),
        pytest.param(2, 4, False, marks=pytest.mark.slow),
        pytest.param(6, 3, False, marks=pytest.mark.slow),
    ],
)
def test_processes_share_a_model_that_needs_no_threads_of_its_own(
    tiny: TinyWorkspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: Runtime,
    instances: int,
    cores: int,
    shares: bool,
) -> None:
    if runtime is Runtime.OPENVINO and (instances, cores) == (6, 4):
        shares = False  # two streams a process
    not_taken = "run_workers" if shares else "run_sharing"
    monkeypatch.setattr(f"pipeline.run.runner.{not_taken}", lambda *_: pytest.fail(f"{not_taken} was called"))
    plan = plan_for(tiny, runtime=runtime, batch=4, instances=instances, processes=2, cores=cores)
    entries = entries_of(tiny.images, tmp_path / "out")
    infer_entries(plan, entries, lambda message: None)
    expected = plain_answers(tiny.package, tiny.images)
    np.testing.assert_allclose(answers(entries), expected, atol=1e-6 if runtime is Runtime.ONNXRUNTIME else 0.05)
