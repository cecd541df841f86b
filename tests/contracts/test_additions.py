"""OpenVINO adds two convolutions up within the first that the addition reads, and rounds the output of the other only.

Seen with openvino 2026.4.1 on x86 CPUs. `pipeline/quant/addends.py` puts the one with the wider step first for it, and
the search for an accuracy goal tries no outputs that are added up so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import Builder, images, run_exact, run_in, sqnr_db

from pipeline.runtimes.base import Runtime

CHANNELS = 16
COARSE, FINE = 0.5, 0.08  # steps of the two outputs, whose values lie within either range


def added(first: float, second: float, *, quantized: bool = True) -> onnx.ModelProto:
    """Return a network that adds up two int8 convolutions whose outputs have these steps."""
    made = Builder()

    def qdq(x: str, step: float, zero: int) -> str:
        parameters = made.constant(step), made.constant(zero, np.uint8)
        return made.op("DequantizeLinear", made.op("QuantizeLinear", x, *parameters), *parameters) if quantized else x

    def convolution(x: str, seed: int) -> str:
        weights = np.random.default_rng(seed).integers(-63, 64, (CHANNELS, CHANNELS, 1, 1))
        steps = made.constant(np.full(CHANNELS, 0.01)), made.constant(np.zeros(CHANNELS), np.int8)
        return made.op("Conv", x, made.op("DequantizeLinear", made.constant(weights, np.int8), *steps, axis=0))

    x = qdq(made.op("Relu", made.conv("x", 3, CHANNELS)), 0.02, 0)
    # The weights of either step are the same in both orders.
    one, other = (qdq(convolution(x, 1 if step == COARSE else 2), step, 128) for step in (first, second))
    whole = qdq(made.op("Relu", made.op("Add", one, other)), 0.08, 0)
    return made.model(made.gemm(made.pooled(whole), CHANNELS, 5))


def test_the_addend_read_first_is_not_rounded(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO; install the extra openvino")
    batch, noise = images(seed=5), {}
    for name, steps in (("coarse first", (COARSE, FINE)), ("fine first", (FINE, COARSE))):
        onnx.save(added(*steps), tmp_path / "n.onnx")
        found = run_in(Runtime.OPENVINO, tmp_path / "n.onnx", batch)
        noise[name] = sqnr_db(run_exact(added(*steps, quantized=False), batch), found)
    assert noise["coarse first"] > noise["fine first"] + 6
