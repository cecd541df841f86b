"""addends.py: of two convolutions that are added up, the one with the wider step comes first."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from small_graphs import Builder, images, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.onnx_models.graphs import makers_of
from pipeline.quant import qdq
from pipeline.runtimes.base import Runtime


def projection_block(first: float, second: float) -> onnx.ModelProto:
    """Return a network that adds up two convolutions, with outputs that are larger by these factors."""
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 16))

    def branch(factor: float) -> str:
        weights = made.normal(16, 16, 1, 1, spread=factor * (1 / 16) ** 0.5)
        return made.op("Conv", x, made.constant(weights), made.constant(made.normal(16, spread=0.1)))

    one, other = branch(first), branch(second)
    return made.model(made.gemm(made.pooled(made.op("Relu", made.op("Add", one, other))), 16, 5))


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    return qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True)


def added_up(model: onnx.ModelProto) -> list[str]:
    """Return the names of the convolutions that an Add reads through quantizers, in order."""
    makers = makers_of(model.graph)
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    return [makers[makers[makers[name].input[0]].input[0]].name for name in add.input]


@pytest.mark.parametrize(("first", "second"), [(1.0, 8.0), (8.0, 1.0)])
def test_insert_qdq_puts_the_convolution_with_the_wider_step_first(first: float, second: float) -> None:
    model = projection_block(first, second)
    wide, narrow = ("conv1", "conv2") if first > second else ("conv2", "conv1")
    assert added_up(quantize(model)) == [wide, narrow]


def test_openvino_does_not_round_the_convolution_that_an_addition_reads_first(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO; install the extra openvino")
    model = projection_block(1.0, 8.0)
    made, batch = quantize(model), images(seed=5)
    swapped = onnx.ModelProto()
    swapped.CopyFrom(made)
    (add,) = (node for node in swapped.graph.node if node.op_type == "Add")
    add.input[0], add.input[1] = add.input[1], add.input[0]
    expected, noise = run_exact(model, batch), {}
    for name, each in (("made", made), ("swapped", swapped)):
        onnx.save(each, tmp_path / f"{name}.onnx")
        noise[name] = sqnr_db(expected, run_in(Runtime.OPENVINO, tmp_path / f"{name}.onnx", batch))
    assert noise["made"] > noise["swapped"] + 1.0
