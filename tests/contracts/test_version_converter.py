"""What onnx's version converter makes of older operators of classification networks, beside their answers before.

Seen with onnx 1.23.2 and onnxruntime 1.32.0. Files from opset 7 on are raised by our own rewrites because of what the
converter changes without a word; older ones go through it up to opset 7 (`pipeline/onnx_models/opsets.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import version_converter
from onnx_fixtures import CHW, IMAGES, Float32, save
from onnx_models.test_opsets import CASES
from small_graphs import run_exact

TARGET = 17
REFUSED = {"norm of positions"}  # BatchNormalization of opsets 7 and 8 with spatial=0
# A Hardmax over all axes behind `axis` becomes one over that axis alone; linear upsampling, which samples at
# x / scale up to opset 10, gets the half-pixel centres that are the default from opset 11 on.
CHANGED = {
    "hardmax",
    *(f"{kind} linear {how}" for kind in ("upsample 7", "upsample 9", "resize 10") for how in ("up", "by a half")),
    *("resize 10 linear down", "resize 10 linear both"),
}
OLD = {name: (opsets[0], nodes, constants) for name, opsets, nodes, constants in CASES if opsets[0] < TARGET}


def convert(name: str, path: Path) -> tuple[Float32, Float32]:
    """Return the answers of a case as it is, and as the converter brings it to opset 17."""
    opset, nodes, constants = OLD[name]
    model = onnx.load(save(path, nodes, opset, constants, dims=(1, *CHW)))
    return run_exact(model, IMAGES[:1]), run_exact(version_converter.convert_version(model, TARGET), IMAGES[:1])


@pytest.mark.parametrize("name", [name for name in OLD if name not in CHANGED | REFUSED])
def test_operator_answers_as_before_when_converted(name: str, tmp_path: Path) -> None:
    before, after = convert(name, tmp_path / "m.onnx")
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_operator_answers_otherwise_when_converted(name: str, tmp_path: Path) -> None:
    before, after = convert(name, tmp_path / "m.onnx")
    assert abs(after - before).max() > 0.5


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_operator_is_refused_by_the_converter(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Attribute spatial must have value 1"):
        convert(name, tmp_path / "m.onnx")
