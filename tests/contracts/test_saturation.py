"""Every pair of weights that a kernel sums in 16 bits is one that packages bound, found by trying all pairs.

OpenVINO is held to CPUs without VNNI by oneDNN's own switch; ONNX Runtime runs on an emulated CPU.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
EMULATOR = "qemu-x86_64-static"


def enumerate_pairs(runtime: str, *emulator: str, **environment: str) -> dict[str, dict[str, Any]]:
    """Return what `benchmarks/pairs.py` finds, by layer."""
    done = subprocess.run(
        [*emulator, sys.executable, str(REPOSITORY / "benchmarks" / "pairs.py"), runtime, "--json"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return {found["layer"]: found for found in map(json.loads, done.stdout.splitlines())}


def check(found: dict[str, dict[str, Any]]) -> None:
    assert len(found) > 60
    assert {layer: each["unbounded"] for layer, each in found.items() if each["unbounded"]} == {}
    # An enumeration that finds nothing, because all was computed in float or with VNNI, proves nothing.
    for layer in ("Conv 3x3, 4 channels", "Conv 1x1, 16 channels", "Gemm, 64 inputs", "MatMul, 64 inputs"):
        assert found[layer]["cut"], layer
    assert found["Conv 1x1, 3 channels"]["cut"] == [[0, 1]]


@pytest.mark.slow
@pytest.mark.openvino
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_openvino_cuts_off_only_sums_of_bounded_pairs(isa: str) -> None:
    pytest.importorskip("openvino")
    if platform.machine() != "x86_64":
        pytest.skip("needs an x86 CPU")
    if isa == "AVX512_CORE" and "avx512bw" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs a CPU with AVX-512")
    found = enumerate_pairs("openvino", ONEDNN_MAX_CPU_ISA=isa)
    check(found)
    rows_of_one_channel = [[3 * row, 3 * row + 1] for row in range(3)]
    assert found["Conv 3x3, 1 channels"]["cut"] == ([] if isa == "AVX2" else rows_of_one_channel)


@pytest.mark.slow
def test_onnxruntime_cuts_off_only_sums_of_bounded_pairs() -> None:
    if platform.machine() != "x86_64" or shutil.which(EMULATOR) is None:
        pytest.skip(f"needs an x86 CPU and {EMULATOR} of the package qemu-user-static")
    found = enumerate_pairs("onnxruntime", EMULATOR, "-cpu", "Haswell")
    check(found)
    cut = found["Conv 3x3, 3 channels"]["cut"]
    assert [0, 9] in cut  # the first two channels of the first position
    assert [1, 18] in cut  # its third one and the next position's first
