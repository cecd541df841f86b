"""float_arithmetic.py: bfloat16 only where the file allows it and the CPU multiplies it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from small_graphs import Builder

from pipeline.host import hardware
from pipeline.runtimes.base import Placement
from pipeline.runtimes.float_arithmetic import BFLOAT16, allow_bfloat16, computes_in_bfloat16


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    """Return a model's file as it is and with the mark, by what it allows."""
    made = Builder(3)
    model = made.model(made.gemm(made.pooled(made.op("Relu", made.conv("x", 3, 8))), 8, 5))
    model.metadata_props.add(key="another", value="x" * 300)  # its length takes two bytes
    files = {"float32": tmp_path / "float32.onnx", "bfloat16": tmp_path / "bfloat16.onnx"}
    onnx.save(model, files["float32"])
    allow_bfloat16(model)
    onnx.save(model, files["bfloat16"])
    return files


@pytest.mark.parametrize("multiplies", [True, False])
def test_float_parts_are_bfloat16_when_file_and_cpu_allow_it(
    multiplies: bool, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "computes_bfloat16", lambda: multiplies)
    assert computes_in_bfloat16(saved["bfloat16"]) is multiplies
    assert not computes_in_bfloat16(saved["float32"])


def test_a_mark_is_found_when_functions_of_the_model_follow_it(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "computes_bfloat16", lambda: True)
    model = onnx.load(saved["bfloat16"])
    model.functions.add(name="f", domain="d")
    onnx.save(model, saved["bfloat16"])
    assert computes_in_bfloat16(saved["bfloat16"])


def test_a_model_is_marked_once(saved: dict[str, Path]) -> None:
    model = onnx.load(saved["bfloat16"])
    allow_bfloat16(model)
    assert [each.key for each in model.metadata_props].count(BFLOAT16) == 1


@pytest.mark.parametrize("content", [b"", b"\x08", b"not a model at all", b"<?xml version='1.0'?>"])
def test_files_that_are_no_models_allow_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "computes_bfloat16", lambda: True)
    (tmp_path / "model.onnx").write_bytes(content)
    assert not computes_in_bfloat16(tmp_path / "model.onnx")


@pytest.mark.openvino
@pytest.mark.skipif(not hardware.computes_bfloat16(), reason="this CPU does not multiply bfloat16")
def test_openvino_is_told_what_to_compute_float_parts_in(saved: dict[str, Path]) -> None:
    ov = pytest.importorskip("pipeline.runtimes.ov")
    for name, precision in (("float32", "f32"), ("bfloat16", "bf16")):
        compiled = ov.compile_model(saved[name], 2, Placement(1, 1))
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == precision
