"""What every runtime promises, held by one fixture over all of them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from run_fixtures import CLASS_IDS, REPOSITORY, Float32, TinyWorkspace, float32_model, int8_model

from pipeline.errors import BackendError
from pipeline.quant import pixels
from pipeline.runtimes import opening
from pipeline.runtimes.base import Backend, Placement, Runtime, TensorSpec
from pipeline.runtimes.opening import choose, default_runtime, open_backend, place

BATCH = 4
Open = Callable[..., AbstractContextManager[Backend]]


def noise(images: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(0, 1, (images, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def open_tiny(runtime: Runtime, tiny_workspace_master: TinyWorkspace) -> Open:
    def open_it(model: Path = tiny_workspace_master.package.model, streams: int = 2) -> AbstractContextManager[Backend]:
        return open_backend(runtime, model, batch=BATCH, placement=Placement(streams, max(2, streams)))

    return open_it


@pytest.fixture
def backend(open_tiny: Open) -> Iterator[Backend]:
    with open_tiny() as opened:
        yield opened


def test_open_tells_name_and_shapes(backend: Backend, runtime: Runtime) -> None:
    assert backend.name == runtime.value
    assert backend.version[0].isdigit()
    assert backend.input == TensorSpec("image", "float32", (None, 3, 32, 32))
    assert backend.output == TensorSpec("logits", "float32", (None, len(CLASS_IDS)))
    assert backend.placement == Placement(streams=2, threads=2)


def test_infer_returns_float32_of_the_callers_own(backend: Backend) -> None:
    first = backend.infer(noise(BATCH))
    kept = first.copy()
    assert first.dtype == np.float32
    assert first.shape == (BATCH, len(CLASS_IDS))
    for seed in range(1, 4):
        backend.infer(noise(BATCH, seed))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("images", [1, 3])
def test_infer_gives_a_partial_batch_the_answers_of_a_whole_one(backend: Backend, images: int) -> None:
    batch = noise(BATCH)
    np.testing.assert_allclose(backend.infer(batch[:images]), backend.infer(batch)[:images], atol=1e-6)


def test_infer_takes_an_array_that_is_not_contiguous(backend: Backend) -> None:
    batch = noise(BATCH)
    np.testing.assert_array_equal(backend.infer(batch[::-1]), backend.infer(batch[::-1].copy()))


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_infer_is_safe_from_more_threads_than_streams(open_tiny: Open, streams: int) -> None:
    batches = [noise(1 + seed % BATCH, seed) for seed in range(40)]
    with open_tiny(streams=streams) as backend, ThreadPoolExecutor(6) as pool:
        expected = [backend.infer(batch) for batch in batches]
        for answers, wanted in zip(pool.map(backend.infer, batches), expected, strict=True):
            np.testing.assert_allclose(answers, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (noise(2).astype(np.float64), "input 'image': expected float32 [N, 3, 32, 32], got float64 [2, 3, 32, 32]"),
        (noise(2)[:, :, :31], "input 'image': expected float32 [N, 3, 32, 32], got float32 [2, 3, 31, 32]"),
        (noise(2)[0], "input 'image': expected float32 [N, 3, 32, 32], got float32 [3, 32, 32]"),
        (noise(5), "input 'image': 5 images, but the model was opened for 1 to 4"),
        (noise(0), "input 'image': 0 images, but the model was opened for 1 to 4"),
    ],
    ids=["dtype", "shape", "rank", "too_many", "none"],
)
def test_infer_says_what_is_wrong_with_the_batch(backend: Backend, batch: Float32, text: str) -> None:
    with pytest.raises(BackendError) as raised:
        backend.infer(batch)
    assert str(raised.value) == text


def test_model_is_freed_at_the_end_of_the_with(open_tiny: Open) -> None:
    with open_tiny() as backend:
        with next(
            iter(vars(backend)[name] for name in ("_sessions", "_requests") if name in vars(backend))
        ).borrow() as engine:
            held = weakref.ref(engine)
        del engine
    gc.collect()
    assert held() is None
    with pytest.raises(RuntimeError, match="the model was closed"):
        backend.infer(noise(1))


@pytest.mark.parametrize("content", [None, b"", b"not a model"], ids=["missing", "empty", "garbage"])
def test_open_refuses_a_file_that_is_no_model(open_tiny: Open, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError, match="does not load it") as raised, open_tiny(path):
        pass
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_open_refuses_an_operator_that_the_runtime_lacks(open_tiny: Open, tmp_path: Path) -> None:
    model = float32_model()
    model.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(BackendError, match=r"odd\.onnx: .* does not load it"), open_tiny(tmp_path / "odd.onnx"):
        pass


def test_float32_model_answers_as_in_onnx_runtime(open_tiny: Open, tiny_workspace_master: TinyWorkspace) -> None:
    model = tiny_workspace_master.float32_model
    placement = Placement(1, 1)
    with open_backend(Runtime.ONNXRUNTIME, model, batch=BATCH, placement=placement) as reference:
        expected = reference.infer(noise(BATCH))
    with open_tiny(model) as backend:
        np.testing.assert_allclose(backend.infer(noise(BATCH)), expected, rtol=1e-4, atol=1e-4)


def test_int8_model_answers_nearly_as_float32(
    backend: Backend, open_tiny: Open, tiny_workspace_master: TinyWorkspace
) -> None:
    with open_tiny(tiny_workspace_master.float32_model) as float32:
        expected = float32.infer(noise(BATCH))
    error = np.abs(backend.infer(noise(BATCH)) - expected).max()
    assert 0 < error < 0.1 * np.abs(expected).max()


def test_model_that_reads_pixels_takes_uint8_in_batches_of_any_size(open_tiny: Open, tmp_path: Path) -> None:
    model = float32_model()
    pixels.fold_normalisation(model, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    onnx.save(int8_model(model, np.random.default_rng(1).integers(0, 256, (8, 3, 32, 32))), tmp_path / "pixels.onnx")
    images = np.random.default_rng(2).integers(0, 256, (BATCH, 3, 32, 32), np.uint8)
    with open_tiny(tmp_path / "pixels.onnx") as backend:
        assert backend.input == TensorSpec("image", "uint8", (None, 3, 32, 32))
        whole = backend.infer(images)
        assert whole.dtype == np.float32
        for count in range(1, BATCH):
            np.testing.assert_allclose(backend.infer(images[:count]), whole[:count], atol=1e-5)
        with pytest.raises(BackendError, match=r"expected uint8 \[N, 3, 32, 32\], got float32"):
            backend.infer(noise(1))


@pytest.mark.parametrize(
    ("machine", "installed", "expected"),
    [
        ("x86_64", {"openvino", "onnxruntime"}, Runtime.OPENVINO),
        ("AMD64", {"openvino"}, Runtime.OPENVINO),
        ("x86_64", {"onnxruntime"}, Runtime.ONNXRUNTIME),
        ("aarch64", {"openvino", "onnxruntime"}, Runtime.ONNXRUNTIME),
        ("arm64", {"openvino", "onnxruntime"}, Runtime.ONNXRUNTIME),
        ("aarch64", {"openvino"}, Runtime.OPENVINO),
        ("aarch64", set(), Runtime.ONNXRUNTIME),
    ],
)
def test_default_runtime_is_the_one_with_most_int8_kernels_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, machine: str, installed: set[str], expected: Runtime
) -> None:
    finder = SimpleNamespace(find_spec=lambda name: name if name in installed else None)
    monkeypatch.setattr(opening, "importlib", SimpleNamespace(util=finder))
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert default_runtime() is expected
    assert choose(Runtime.AUTO) is expected


def test_choose_says_how_to_install_a_runtime_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    assert choose(Runtime.AUTO) is Runtime.ONNXRUNTIME
    with pytest.raises(BackendError) as raised:
        choose(Runtime.OPENVINO)
    assert str(raised.value) == "--runtime openvino: not installed; run: pip install openvino"


@pytest.mark.openvino
def test_importing_openvino_starts_no_process_and_leaves_the_home_folder_alone(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = "import os, time; os.fork = exit; import pipeline.runtimes.ov; time.sleep(0.3); print('quiet')"
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("quiet\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("instances", "cores", "streams", "threads"),
    [(1, 1, 1, 1), (1, 8, 1, 8), (2, 8, 2, 8), (3, 8, 3, 8), (8, 2, 2, 2), (1024, 2, 2, 2), (8, 8, 8, 8)],
)
def test_place_never_runs_more_streams_than_cores(instances: int, cores: int, streams: int, threads: int) -> None:
    assert place(instances, cores) == Placement(streams, threads)
