"""Why packages are compiled anew by each process: OpenVINO's model cache has one file for every instruction set.

Seen with openvino 2026.4.1. The file's name is made of the model and the settings, not of the instruction set that
oneDNN uses (the CPU's, or what ONEDNN_MAX_CPU_ISA leaves of it). A process with another one does not take the file, but
compiles and writes its own over it: where the two run in turn, as machines of different age do that share a folder,
neither ever finds its own. A cache of ours would need a folder for each instruction set; we set none.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from small_graphs import between_convolutions, images, ranges_seen

from pipeline.quant import qdq
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86"),
]

COMPILE = """
import sys
import openvino
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"CACHE_DIR": sys.argv[2]})
print(compiled.get_property("LOADED_FROM_CACHE"))
"""


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    if "avx512bw" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("needs a CPU with AVX-512, to be held to AVX2")
    model = between_convolutions(lambda made, x: made.op("Relu", x))
    path = tmp_path_factory.mktemp("model") / "int8.onnx"
    onnx.save(qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True), path)
    return path


def is_found(int8: Path, cache: Path, instructions: str) -> bool:
    """Compile in a process of its own, and return whether the cache had it."""
    command = [sys.executable, "-c", COMPILE, str(int8), str(cache)]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {"True": True, "False": False}[done.stdout.strip()]


def test_model_cache_finds_the_model_when_the_instruction_set_is_the_same(int8: Path, tmp_path: Path) -> None:
    assert [is_found(int8, tmp_path, "AVX2") for _ in range(2)] == [False, True]


def test_model_cache_overwrites_itself_when_instruction_sets_take_turns(int8: Path, tmp_path: Path) -> None:
    written = []
    for instructions in ("ALL", "AVX2", "ALL"):
        assert not is_found(int8, tmp_path, instructions)
        (file,) = tmp_path.iterdir()
        written.append((file.name, file.read_bytes()))
    assert len({name for name, _ in written}) == 1
    assert written[0][1] != written[1][1]


def test_openvino_backend_writes_no_cache(int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_backend(Runtime.OPENVINO, int8, batch=1, placement=place(1, 1)) as backend:
        backend.infer(images()[:1])
    assert list(tmp_path.iterdir()) == []
