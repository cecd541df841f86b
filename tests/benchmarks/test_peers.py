"""benchmarks/peers: the torch module that stands for an ONNX model, and the model that other tools are given."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="pip install torch")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def import_script(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> ModuleType:
    """Import a script as its own process would: its folder comes first."""
    monkeypatch.syspath_prepend(str(folder))
    __import__(name)
    return sys.modules[name]


@pytest.fixture
def residual_network(tmp_path: Path) -> Path:
    """A network of every operator of a ResNet, with a group convolution and weights [in, out], ended by a softmax."""
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"], strides=[2, 1], pads=[1, 2, 1, 2], kernel_shape=[3, 5]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], group=2, pads=[2, 2, 2, 2], dilations=[2, 2]),
        helper.make_node("Add", ["c2", "p1"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["output"], axis=1),
    ]
    weights = [tensor("w1", 8, 3, 3, 5), tensor("b1", 8), tensor("w2", 8, 4, 3, 3), tensor("w3", 8, 5), tensor("b3", 5)]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 17, 20])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 5])],
        weights,
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_save_logits_gives_the_logarithms_of_the_answer_when_a_softmax_ends_the_model(
    residual_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer_tools = import_script(monkeypatch, FOLDER, "peer_tools")
    peer_tools.save_logits(residual_network, tmp_path / "logits.onnx")
    images = np.random.default_rng(1).normal(size=(2, 3, 17, 20)).astype(np.float32)
    (shares,) = onnxruntime.InferenceSession(residual_network).run(None, {"input": images})
    (logits,) = onnxruntime.InferenceSession(tmp_path / "logits.onnx").run(None, {"input": images})
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, expected, rtol=1e-4)


def test_onnx_module_computes_what_onnx_runtime_does_when_the_model_is_a_resnet(
    residual_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer_tools = import_script(monkeypatch, FOLDER, "peer_tools")
    peer_tools.save_logits(residual_network, tmp_path / "logits.onnx")
    onnx_in_torch = import_script(monkeypatch, FOLDER / "peers", "onnx_in_torch")
    images = np.random.default_rng(1).normal(size=(2, 3, 17, 20)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(tmp_path / "logits.onnx").run(None, {"input": images})
    with torch.no_grad():
        found = onnx_in_torch.OnnxModule(tmp_path / "logits.onnx")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_read_interpreters_names_the_tools_when_one_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    peer_tools = import_script(monkeypatch, FOLDER, "peer_tools")
    with pytest.raises(
        Exception, match="--peer quack=x: expected TOOL=PYTHON with one of the tools aimet, litert, quark"
    ):
        peer_tools.read_interpreters(["quack=x"])
