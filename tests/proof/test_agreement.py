from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from run_fixtures import REPOSITORY, SPEC

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data.calibration_list import FITTING_IMAGES, choose_evenly
from pipeline.data.imagenet import list_dataset
from pipeline.host import hardware
from pipeline.onnx_models.scores import Scores
from pipeline.proof import agreement
from pipeline.proof import verdicts as proof
from pipeline.proof.verdicts import Verdict
from pipeline.runtimes.base import Runtime

Float32 = npt.NDArray[np.float32]


def test_noise_is_the_same_every_time_and_has_the_size_of_the_input() -> None:
    (batch,) = agreement.make_noise(SPEC)
    assert batch.shape == (8, 3, 32, 32)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, agreement.make_noise(SPEC)[0])


def test_choose_takes_images_that_no_weight_was_fitted_to() -> None:
    chosen = agreement.choose(1000)
    assert len(chosen) == len(set(chosen)) == 64
    assert not set(chosen) & set(choose_evenly(1000, FITTING_IMAGES))
    assert max(chosen) - min(chosen) > 800  # over the whole list
    assert agreement.choose(20) == list(range(20))


def test_prepare_gives_images_in_batches(image_tree: Path, batch_nchw: Float32, spec: PreprocessSpec) -> None:
    batches = agreement.prepare(list_dataset(image_tree).samples, spec)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    np.testing.assert_array_equal(np.concatenate(batches), batch_nchw)


def hang(*_: object) -> None:
    time.sleep(100)


@pytest.mark.openvino
def test_run_in_ends_a_runtime_that_hangs(
    tiny_onnx: Path, batch_nchw: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "_LEAST_SECONDS", 1.0)
    monkeypatch.setattr(agreement, "_TIMES_EXACT", 0.0)
    monkeypatch.setattr(agreement, "_infer", hang)
    found = agreement.run_in(Runtime.OPENVINO, tiny_onnx, [batch_nchw[:8]], counts=False, exact_seconds=0.1)
    assert found.outputs is None
    assert found.reason == "did not end within 1 s"


CHANNELS = 64


def saturating_model(path: Path) -> Path:
    """Write an int8 convolution whose weights are all large and of one sign, by hand: the worst case."""
    random = np.random.default_rng(1)
    tensors = {
        "w": random.integers(110, 128, (16, CHANNELS, 3, 3)).astype(np.int8),
        "w_scale": np.float32(0.01),
        "w_zero": np.int8(0),
        "x_scale": np.float32(1 / 255),
        "c_scale": np.float32(CHANNELS * 9 * 1.27 / 255),
        "zero": np.uint8(0),
        "fc": random.normal(size=(16, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "x_scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weights"]),
        helper.make_node("Conv", ["x", "weights"], ["c"], "conv"),
        helper.make_node("QuantizeLinear", ["c", "c_scale", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "c_scale", "zero"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", CHANNELS, 14, 14])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def bright_images() -> Float32:
    return np.random.default_rng(0).uniform(0.5, 1, (8, CHANNELS, 14, 14)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.openvino
def test_runtime_whose_kernels_cut_sums_off_is_refused_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO held to AVX2 by oneDNN's own switch, which ONNX Runtime does not obey."""
    pytest.importorskip("openvino")
    if platform.machine() != "x86_64" or hardware.saturates():
        pytest.skip("needs an x86 CPU with VNNI to compare with")
    model, batches = saturating_model(tmp_path / "model.onnx"), [bright_images()]
    exact = agreement.run_exact(model, batches)
    assert exact.outputs is not None
    verdicts = {}
    for isa in ("", "AVX2"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME):
            found = agreement.run_in(
                runtime, model, batches, wide_weights=True, counts=True, exact_seconds=exact.seconds
            )
            assert found.outputs is not None
            assert found.executed is not None
            figures = proof.compare(exact.outputs, found.outputs, Scores.LOGITS)
            cause = agreement.kernel_cause(runtime, wide_weights=True)
            wanted = proof.compare(exact.outputs, exact.outputs, Scores.LOGITS)
            verdicts[isa, runtime] = proof.judge_runtime(figures, wanted, cause)
    (bad,) = [key for key, judged in verdicts.items() if judged.verdict is not Verdict.GOOD]
    assert bad == ("AVX2", Runtime.OPENVINO)
    assert verdicts[bad].verdict is Verdict.REFUSED
    assert verdicts[bad].cause == (
        "its kernels on this CPU (no VNNI, no AMX) saturate: they sum int8 products in 16 bits and cut off what is "
        "larger; use --runtime onnxruntime, or build it again: packages now are exact on every CPU"
    )


ANSWER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place
images = np.load(sys.argv[2])
for wide in (False, True):
    with open_backend(
        Runtime.ONNXRUNTIME, Path(sys.argv[1]), batch=len(images), placement=place(1, 1), wide_weights=wide
    ) as backend:
        np.save(f"{sys.argv[3]}{wide}.npy", backend.infer(images))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs an emulator of CPUs without VNNI")
def test_onnxruntime_is_exact_on_avx2_when_it_knows_of_wide_weights(tmp_path: Path) -> None:
    """An emulated Haswell, whose /proc/cpuinfo is that of this machine."""
    model = saturating_model(tmp_path / "model.onnx")
    images = bright_images()[:1]
    np.save(tmp_path / "images.npy", images)
    exact = agreement.run_exact(model, [images])
    assert exact.outputs is not None
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), hardware.MAX_ISA: "AVX2"}
    arguments = [sys.executable, "-c", ANSWER, str(model), str(tmp_path / "images.npy"), str(tmp_path / "wide_")]
    command = ["qemu-x86_64-static", "-cpu", "Haswell", *arguments]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    largest = float(np.abs(exact.outputs).max())
    errors = {
        wide: float(np.abs(np.load(tmp_path / f"wide_{wide}.npy") - exact.outputs).max()) / largest
        for wide in (False, True)
    }
    assert errors[True] < 1e-5
    assert errors[False] > 0.1
