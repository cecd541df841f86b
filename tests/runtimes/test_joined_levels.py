"""joined_levels.py: OpenVINO does not round again what a Concat joins, and answers as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import Builder, images, ranges_seen, run_in, sqnr_db

from pipeline.quant import qdq
from pipeline.quant.qmath import Range
from pipeline.runtimes.base import Runtime

openvino = pytest.importorskip("openvino", reason="extra openvino")


def dense_block(path: Path, widest: float) -> list[str]:
    """Write the int8 model of three layers that each read all before them; return the names of what Concats make."""
    made = Builder()
    features, wholes = [made.conv("x", 3, 8)], list[str]()
    for _ in range(3):
        features.append(made.conv(wholes[-1] if wholes else features[0], 8 * len(features), 8))
        wholes.append(made.op("Concat", *features, axis=1))
    model = made.model(made.gemm(made.pooled(made.op("Relu", made.conv(wholes[-1], 32, 8))), 8, 5))
    ranges = ranges_seen(model, images()) | {name: Range(-5.0, 5.0) for name in wholes}
    ranges[wholes[-1]] = Range(-5.0, widest)
    onnx.save(qdq.insert_qdq(model, ranges, per_channel=True), path)
    return wholes


@pytest.mark.parametrize(("widest", "removed"), [(6.0, 3), (60.0, 0)])
def test_copy_joined_levels_removes_quantizers_of_concats_whose_inputs_have_their_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, widest: float, removed: int
) -> None:
    from pipeline.runtimes import joined_levels, ov

    path = tmp_path / "int8.onnx"
    dense_block(path, widest)
    network = openvino.Core().read_model(str(path))
    assert joined_levels.copy_joined_levels(network) == removed
    assert joined_levels.copy_joined_levels(network) == 0
    batch = images(8, seed=3)
    answers = run_in(Runtime.OPENVINO, path, batch)
    monkeypatch.setattr(ov, "copy_joined_levels", lambda network: 0)
    assert sqnr_db(run_in(Runtime.OPENVINO, path, batch), answers) > 40
    assert np.isfinite(answers).all()
