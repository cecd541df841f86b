"""executed.py: counts from the graphs that the runtimes execute, on networks whose float parts are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import Builder, between_convolutions, images, ranges_seen

from pipeline.errors import BackendError
from pipeline.quant import qdq
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.executed import count_int8

Float32 = npt.NDArray[np.float32]

LAYERS = [
    "/conv1/Conv",
    "/fc/Gemm",
    "/layer1/layer1.0/conv1/Conv",
    "/layer1/layer1.0/conv2/Conv",
    "/layer2/layer2.0/conv1/Conv",
    "/layer2/layer2.0/conv2/Conv",
    "/layer2/layer2.0/downsample/downsample.0/Conv",
]
BOTH = [Runtime.ONNXRUNTIME, pytest.param(Runtime.OPENVINO, marks=pytest.mark.openvino)]


@pytest.fixture(autouse=True)
def needs_openvino(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("openvino"):
        pytest.importorskip("openvino")


@pytest.mark.parametrize("runtime", BOTH)
def test_count_int8_counts_every_layer_when_all_are_quantized(
    tiny_model: onnx.ModelProto, batch_nchw: Float32, tmp_path: Path, runtime: Runtime
) -> None:
    int8 = qdq.insert_qdq(tiny_model, ranges_seen(tiny_model, batch_nchw), per_channel=True)
    onnx.save(int8, tmp_path / "m.onnx")
    assert count_int8(runtime, tmp_path / "m.onnx") == {
        "weighted": 7,
        "int8": 7,
        "float_layers": [],
        "other_float": {},
    }


@pytest.mark.parametrize("runtime", BOTH)
def test_count_int8_names_every_layer_when_the_model_is_float(tiny_onnx: Path, runtime: Runtime) -> None:
    found = count_int8(runtime, tiny_onnx)
    assert (found["weighted"], found["int8"]) == (7, 0)
    assert sorted(found["float_layers"]) == LAYERS  # the file's names, though activations were fused into them
    assert found["other_float"]


@pytest.mark.parametrize("runtime", BOTH)
@pytest.mark.parametrize("layer", ["/layer1/layer1.0/conv1/Conv", "/fc/Gemm"])
def test_count_int8_names_the_layer_when_one_stays_in_float(
    tiny_model: onnx.ModelProto, batch_nchw: Float32, tmp_path: Path, runtime: Runtime, layer: str
) -> None:
    ranges = ranges_seen(tiny_model, batch_nchw)
    onnx.save(qdq.insert_qdq(tiny_model, ranges, per_channel=True, float_layers=[layer]), tmp_path / "m.onnx")
    found = count_int8(runtime, tmp_path / "m.onnx")
    assert (found["weighted"], found["int8"], found["float_layers"]) == (7, 6, [layer])


def write_qdq(path: Path, between: list[onnx.NodeProto]) -> None:
    """Write a model of one quantized convolution, whose output "c" comes out as "r" of other nodes before "y"."""
    weights = np.random.default_rng(0).integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)
    constants = {
        "w": weights,
        "scale": np.float32(0.02),
        "zero": np.uint8(0),
        "weight_scale": np.float32(0.01),
        "weight_zero": np.int8(0),
        "low": np.float32(0.5),
        "high": np.float32(2),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], "xq"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], "xd"),
        helper.make_node("DequantizeLinear", ["w", "weight_scale", "weight_zero"], ["wd"], "wd"),
        helper.make_node("Conv", ["xd", "wd"], ["c"], "conv"),
        *between,
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["rq"], "rq"),
        helper.make_node("DequantizeLinear", ["rq", "scale", "zero"], ["y"], "yd"),
    ]
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_count_int8_finds_the_convolution_in_float_when_a_clip_keeps_its_output_from_the_quantizer(
    tmp_path: Path,
) -> None:
    """The file has quantizers around both; ONNX Runtime says nothing of the convolution that it computes in float."""
    write_qdq(tmp_path / "m.onnx", [helper.make_node("Clip", ["c", "low", "high"], ["r"], "clip")])
    found = count_int8(Runtime.ONNXRUNTIME, tmp_path / "m.onnx")
    assert (found["weighted"], found["int8"], found["float_layers"]) == (1, 0, ["conv"])


def test_count_int8_counts_float_operators_when_they_stand_between_layers(tmp_path: Path) -> None:
    write_qdq(
        tmp_path / "m.onnx",
        [
            helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["cq"], "cq"),
            helper.make_node("DequantizeLinear", ["cq", "scale", "zero"], ["cd"], "cd"),
            helper.make_node("ReduceMean", ["cd"], ["r"], "mean", axes=[2, 3]),
        ],
    )
    found = count_int8(Runtime.ONNXRUNTIME, tmp_path / "m.onnx")
    assert (found["weighted"], found["int8"]) == (1, 1)
    assert found["other_float"] == {"ReduceMean": 1}


@pytest.mark.parametrize(
    ("kind", "attributes", "inputs"),
    [
        ("Resize", {"mode": "linear"}, ["", "scales"]),
        ("HardSigmoid", {}, []),
        ("ReduceMax", {"axes": [2], "keepdims": 1}, []),
    ],
)
def test_count_int8_names_the_operator_when_onnxruntime_has_it_in_float_alone(
    tmp_path: Path, kind: str, attributes: dict[str, object], inputs: list[str]
) -> None:
    def part(made: Builder, x: str) -> str:
        scales = made.constant([1, 1, 2, 2])
        return made.op(kind, x, *(scales if name == "scales" else name for name in inputs), **attributes)

    model = between_convolutions(part)
    onnx.save(qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True), tmp_path / "m.onnx")
    found = count_int8(Runtime.ONNXRUNTIME, tmp_path / "m.onnx")
    assert (found["weighted"], found["int8"], found["other_float"]) == (4, 4, {kind: 1})


def test_count_int8_counts_layers_that_openvino_compiles_together(tmp_path: Path) -> None:
    """A hidden layer and the one after it become one Subgraph there, which tells the precision of the first alone."""
    pytest.importorskip("openvino")
    made = Builder()
    pooled = made.pooled(made.op("Relu", made.conv("x", 3, 8)))
    model = made.model(made.gemm(made.op("Relu", made.gemm(pooled, 8, 8)), 8, 5))
    ranges = ranges_seen(model, images())
    for left, wanted in (([], 3), (["gemm1"], 2), (["gemm0", "gemm1"], 1)):
        onnx.save(qdq.insert_qdq(model, ranges, per_channel=True, float_layers=left), tmp_path / "m.onnx")
        found = count_int8(Runtime.OPENVINO, tmp_path / "m.onnx")
        assert (found["weighted"], found["int8"], found["float_layers"]) == (3, wanted, left)


@pytest.mark.parametrize("runtime", BOTH)
def test_count_int8_raises_when_the_file_is_no_model(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match="does not load it"):
        count_int8(runtime, tmp_path / "m.onnx")
