"""float_layers.py: a layer that the build file leaves out is computed in float32, in ONNX Runtime too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, images, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.quant import qdq
from pipeline.quant.bias_correction import Dequantized
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.executed import count_int8


def network() -> onnx.ModelProto:
    """Return a network with a layer of each kind: convolution with and without bias, grouped, transposed, two Gemms."""
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    x = made.op("Relu", made.op("Conv", x, made.constant(made.normal(8, 8, 3, 3, spread=0.2)), pads=[1] * 4))
    # Large enough for int8 in ONNX Runtime, of an input that is quantized for it alone where conv1 is left out.
    grouped = made.constant(made.normal(16, 4, 3, 3, spread=0.2))
    x = made.op("Relu", made.op("Conv", x, grouped, made.constant(made.normal(16)), pads=[1] * 4, group=2))
    x = made.op("ConvTranspose", x, made.constant(made.normal(16, 4, 2, 2, spread=0.3)), group=2, strides=[2, 2])
    x = made.op("Relu", made.conv(x, 8, 8))
    hidden = made.op("Gemm", made.pooled(x), made.constant(made.normal(8, 8)))
    return made.model(made.gemm(made.op("Relu", hidden), 8, 5))


@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino)])
@pytest.mark.parametrize("layer", ["conv0", "conv1", "conv2", "gemm0", "gemm1"])
def test_insert_qdq_has_a_layer_computed_in_float_when_it_is_left_out(
    layer: str, runtime: Runtime, tmp_path: Path
) -> None:
    """ONNX Runtime would quantize its weights by itself: the answers would be off from what the file says."""
    if runtime is Runtime.OPENVINO:
        pytest.importorskip("openvino")
    model = network()
    int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True, float_layers=[layer])
    onnx.save(int8, tmp_path / "m.onnx")
    found = count_int8(runtime, tmp_path / "m.onnx")
    assert layer in found["float_layers"]
    # The transposed convolution is float as well; and ONNX Runtime fuses a hidden Gemm with its Relu in float.
    assert found["weighted"] == 7
    assert found["int8"] == 4 if (layer, runtime) == ("gemm1", Runtime.ONNXRUNTIME) else 5
    assert sqnr_db(run_exact(int8, images()), run_in(runtime, tmp_path / "m.onnx", images())) > 55


def test_keep_in_float_keeps_the_bias_to_the_last_bits_of_float32() -> None:
    model = network()
    ranges = ranges_seen(model, images())
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    bias = given[next(node.input[2] for node in model.graph.node if node.name == "conv2")]
    found = {}
    for name in ("conv1", "conv2"):
        read = Dequantized(qdq.insert_qdq(model, ranges, per_channel=True, float_layers=[name]))
        found[name] = read.dequantized(read.nodes[name].input[2])
    kept, zeros = found["conv2"], found["conv1"]
    assert kept is not None
    np.testing.assert_allclose(kept, bias, rtol=0, atol=np.abs(bias).max() * 2.0**-30)
    np.testing.assert_array_equal(zeros, np.zeros(8))
