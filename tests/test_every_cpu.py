"""Packages are exact on CPUs that sum int8 products by two in 16 bits: those are emulated by oneDNN's own switch."""

from __future__ import annotations

import csv
import io
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.host import hardware
from pipeline.packages.package import open_package
from pipeline.quant import placement, qdq
from pipeline.quant.int8_weights import quantized_weights
from pipeline.quant.neighbours import largest_sums
from pipeline.quant.qmath import Range

MakeConfig = Callable[..., BuildConfig]
REPOSITORY = Path(__file__).parents[1]
CHANNELS = 64

ANSWER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place
with open_backend(Runtime.OPENVINO, Path(sys.argv[1]), batch=1, placement=place(1, 1)) as backend:
    images = np.random.default_rng(0).uniform(0.5, 1, (1, *backend.input.shape[1:])).astype(np.float32)
    np.save(sys.argv[2], backend.infer(images))
"""


def summing_model() -> onnx.ModelProto:
    """A convolution whose weights are all large and of one sign: the worst case."""
    weights = np.random.default_rng(1).uniform(0.9, 1, (16, CHANNELS, 3, 3)).astype(np.float32)
    fc = np.random.default_rng(2).normal(size=(16, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "fc"], ["out"], "classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", CHANNELS, 14, 14])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(fc, "fc")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ranges = {name: Range(0.0, 1.0 if name == "image" else 1300.0) for name in placement.observed_tensors(model)}
    return qdq.insert_qdq(model, ranges, per_channel=True, float_activations=["p"])


def answer(model: Path, out: Path, isa: str | None) -> npt.NDArray[np.float32]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if isa is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = isa
    subprocess.run([sys.executable, "-c", ANSWER, str(model), str(out)], check=True, env=environment)
    return np.asarray(np.load(out))


@pytest.mark.openvino
@pytest.mark.parametrize("bounded", [True, False])
def test_openvino_on_avx2_gives_the_answers_of_vnni_when_pairs_are_bounded(tmp_path: Path, bounded: bool) -> None:
    pytest.importorskip("openvino")
    if platform.machine() != "x86_64" or hardware.saturates():
        pytest.skip("needs an x86 CPU with VNNI to compare with")
    model = summing_model()
    if not bounded:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
                tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, 127, np.int8), tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    exact = answer(tmp_path / "model.onnx", tmp_path / "exact.npy", None)
    on_avx2 = answer(tmp_path / "model.onnx", tmp_path / "avx2.npy", "AVX2")
    error = float(np.abs(on_avx2 - exact).max() / np.abs(exact).max())
    assert error < 1e-4 if bounded else error > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["second_order", "nearest"])
def test_build_keeps_every_pair_of_weights_within_the_bound(make_config: MakeConfig, rounding: str) -> None:
    config = make_config("backend.target=avx2", f"backend.quantize.weight_rounding={rounding}")
    assert any("backend.target has no effect" in notice for notice in config.notices)
    package = open_package(build(config, print).prefix)
    assert package.facts["target"] == "any"
    int8, float32 = onnx.load(package.model), package.workspace_file("quantized_from")
    assert float32 is not None
    found = list(quantized_weights(int8, onnx.load(float32)))
    assert len(found) >= 6
    for weights, tensor, _ in found:
        steps = weights.as_rows(numpy_helper.to_array(tensor)).astype(int)
        assert largest_sums(steps, weights.pairs).max() <= 128, weights.layer
    assert max(np.abs(numpy_helper.to_array(tensor).astype(int)).max() for _, tensor, _ in found) == 127


@pytest.mark.parametrize(
    ("sets", "saturating"),
    [
        (["AVX2"], True),
        (["AVX2", "AVX-512"], True),
        (["AVX2", "AVX-VNNI"], False),
        (["AVX2", "AVX-512", "AVX-512 VNNI"], False),
        ([], True),
    ],
)
def test_saturates_tells_cpus_without_int8_sums(
    monkeypatch: pytest.MonkeyPatch, sets: list[str], saturating: bool
) -> None:
    monkeypatch.setattr(hardware, "instruction_sets", lambda runtime: sets)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert hardware.saturates() is saturating
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not hardware.saturates()


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.openvino
def test_real_resnet_gives_equal_scores_on_avx2_and_vnni(
    weights_folder: Path, real_images: Path, tmp_path: Path
) -> None:
    from pipeline.config.build_file import load_build_file

    if platform.machine() != "x86_64" or hardware.saturates():
        pytest.skip("needs an x86 CPU with VNNI to compare with")
    images = sorted((real_images / "nips2017_dev" / "val").glob("*.JPEG"))[:40]
    cfg = load_build_file(
        "torchvision_resnet18.yaml",
        [
            f"frontend.checkpoint={weights_folder}/resnet18_pq.pth",
            f"dataset.path={real_images}/imagenet_train1k",
            "dataset.sampler.get_data_num=24",
            "dataset.sampler.cover_classes=false",
            "backend.quantize.weight_rounding=nearest",
            f"workspace.path={tmp_path}",
        ],
    )
    prefix = build(cfg, print).prefix
    answers = []
    for isa in (None, "AVX2"):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
        command = [
            "predict",
            "-m",
            str(prefix),
            *map(str, images),
            "--topk",
            "3",
            "--csv",
            "-",
            "--runtime",
            "openvino",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command], capture_output=True, text=True, check=True, env=environment
        )
        answers.append([row[1:4] for row in csv.reader(io.StringIO(done.stdout))][1:])
    assert len(answers[0]) == 3 * len(images)
    for one, other in zip(*answers, strict=True):
        assert one[:2] == other[:2]
        assert float(one[2]) == pytest.approx(float(other[2]), abs=1e-4)
