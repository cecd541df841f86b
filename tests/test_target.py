"""`--target avx2`: for CPUs that sum int8 products by two in 16 bits, emulated by oneDNN's own switch."""

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
from run_fixtures import TinyWorkspace

from pipeline import hardware
from pipeline.build import build
from pipeline.cli import main
from pipeline.config.build_file import BuildConfig
from pipeline.package import Package, open_package
from pipeline.quant import qdq
from pipeline.quant.qmath import Range
from pipeline.quant.rounding import LIMIT, REDUCED_LIMIT

MakeConfig = Callable[..., BuildConfig]
REPOSITORY = Path(__file__).parents[1]
CHANNELS = 64

ANSWER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.runtimes.base import Runtime, open_backend, place
with open_backend(Runtime.OPENVINO, Path(sys.argv[1]), batch=1, placement=place(1, 1)) as backend:
    images = np.random.default_rng(0).uniform(0.5, 1, (1, *backend.input.shape[1:])).astype(np.float32)
    np.save(sys.argv[2], backend.infer(images))
"""


def sums_of_pairs(activations: npt.NDArray[np.uint8], weights: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Return what vpmaddubsw makes of them: products of neighbours summed, kept within 16 bits."""
    products = activations.astype(np.int64) * weights
    return (products[0::2] + products[1::2]).clip(-(1 << 15), (1 << 15) - 1)


def test_weights_of_7_bits_never_leave_16_bits_and_those_of_8_do() -> None:
    for limit, exact in ((REDUCED_LIMIT, True), (LIMIT, False)):
        for sign in (-1, 1):
            found = sums_of_pairs(np.full(2, 255, np.uint8), np.full(2, sign * limit, np.int8))
            assert (found[0] == 2 * 255 * sign * limit) is np.bool_(exact)


def summing_model(*, reduced: bool) -> onnx.ModelProto:
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
    ranges = {name: Range(0.0, 1.0 if name == "image" else 600.0) for name in qdq.observed_tensors(model)}
    return qdq.insert_qdq(model, ranges, per_channel=True, reduced=reduced, float_activations=["p"])


def answer(model: Path, out: Path, isa: str | None) -> npt.NDArray[np.float32]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if isa is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = isa
    subprocess.run([sys.executable, "-c", ANSWER, str(model), str(out)], check=True, env=environment)
    return np.asarray(np.load(out))


@pytest.mark.openvino
@pytest.mark.parametrize("reduced", [True, False])
def test_openvino_on_avx2_gives_the_answers_of_vnni_for_7_bits_only(tmp_path: Path, reduced: bool) -> None:
    pytest.importorskip("openvino")
    if platform.machine() != "x86_64" or hardware.saturates():
        pytest.skip("needs an x86 CPU with VNNI to compare with")
    onnx.save(summing_model(reduced=reduced), tmp_path / "model.onnx")
    exact = answer(tmp_path / "model.onnx", tmp_path / "exact.npy", None)
    on_avx2 = answer(tmp_path / "model.onnx", tmp_path / "avx2.npy", "AVX2")
    error = float(np.abs(on_avx2 - exact).max() / np.abs(exact).max())
    assert error < 1e-4 if reduced else error > 0.1


def weights_of(package: Package) -> list[npt.NDArray[np.int8]]:
    model = onnx.load(package.model)
    stored = [numpy_helper.to_array(each) for each in model.graph.initializer if each.data_type == TensorProto.INT8]
    return [weights for weights in stored if weights.ndim > 1]


@pytest.mark.parametrize("rounding", ["second_order", "nearest"])
def test_build_for_avx2_has_weights_of_7_bits(make_config: MakeConfig, rounding: str) -> None:
    package = open_package(
        build(make_config("backend.target=avx2", f"backend.quantize.weight_rounding={rounding}"), print).prefix
    )
    assert package.facts["target"] == "avx2"
    found = weights_of(package)
    assert len(found) >= 6
    assert max(int(np.abs(each.astype(int)).max()) for each in found) == REDUCED_LIMIT
    assert all(counts["agreeing"] >= 18 for counts in package.report()["agreement"].values())
    usual = open_package(build(make_config(), print).prefix)
    assert usual.facts["target"] == "vnni"
    assert max(int(np.abs(each.astype(int)).max()) for each in weights_of(usual)) == LIMIT


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
    monkeypatch.setattr(hardware, "instruction_sets", lambda: sets)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert hardware.saturates() is saturating
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not hardware.saturates()


def test_bench_warns_when_a_package_meets_a_cpu_it_was_not_made_for(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "-m", str(tiny.prefix), "-b", "1", "--iterations", "2"]
    monkeypatch.setattr("pipeline.package.saturates", lambda: False)
    assert main(arguments) == 0
    assert "note:" not in capsys.readouterr().out
    monkeypatch.setattr("pipeline.package.saturates", lambda: True)
    assert main(arguments) == 0
    assert "build with --target avx2 for such CPUs" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.openvino
def test_real_resnet_answers_on_avx2_as_on_vnni_when_built_for_it(
    weights_folder: Path, real_images: Path, tmp_path: Path
) -> None:
    """The same build for VNNI gives other answers there: it is that case that this is about."""
    from pipeline.config.build_file import load_build_file

    if platform.machine() != "x86_64" or hardware.saturates():
        pytest.skip("needs an x86 CPU with VNNI to compare with")
    images = sorted((real_images / "nips2017_dev" / "val").glob("*.JPEG"))[:40]
    shares = {}
    for target in ("avx2", "vnni"):
        cfg = load_build_file(
            "torchvision_resnet18.yaml",
            [
                f"frontend.checkpoint={weights_folder}/resnet18_pq.pth",
                f"dataset.path={real_images}/imagenet_train1k",
                "dataset.sampler.get_data_num=24",
                "dataset.sampler.cover_classes=false",
                "backend.quantize.weight_rounding=nearest",
                f"workspace.path={tmp_path}",  # what the target does not change is made once
                f"backend.target={target}",
            ],
        )
        prefix = build(cfg, print).prefix
        answers = []
        for isa in (None, "AVX2"):
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
            command = ["predict", "-m", str(prefix), *map(str, images), "--topk", "1", "--csv", "-"]
            done = subprocess.run(
                [sys.executable, "-m", "pipeline", *command],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            )
            answers.append([row[2] for row in csv.reader(io.StringIO(done.stdout))][1:])
        shares[target] = sum(one == other for one, other in zip(*answers, strict=True)) / len(images)
    assert shares["avx2"] == 1.0
    assert shares["vnni"] < 0.95
