"""fused.py: files that ONNX Runtime's optimizer wrote, taken apart again, to the values of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, flat, load_and_compare, node, operators, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier

MICROSOFT = "com.microsoft"


def declare(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def fused(kind: str, inputs: str, output: str = "a", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), kind, domain=MICROSOFT, **attributes)


BIAS = RNG.normal(size=4).astype(np.float32)
OTHER = RNG.normal(size=(1, 4, 6, 6)).astype(np.float32)
SQUARE = RNG.normal(size=(6, 6)).astype(np.float32)
ROW = RNG.normal(size=6).astype(np.float32)
FC = RNG.normal(size=(6, 144)).astype(np.float32)
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "convolution and Relu": ([fused("FusedConv", "x w b", activation="Relu")], {"b": BIAS}),
    "convolution, sum and LeakyRelu": (
        [fused("FusedConv", "x w b k", activation="LeakyRelu", activation_params=[0.3])],
        {"b": BIAS, "k": np.repeat(OTHER, 1, axis=0)},
    ),
    "convolution and Clip": ([fused("FusedConv", "x w", activation="Clip", activation_params=[-0.5, 1.5])], {}),
    "convolution and HardSigmoid": (
        [fused("FusedConv", "x w", activation="HardSigmoid", activation_params=[0.3, 0.4])],
        {},
    ),
    "product of matrices": ([node("Conv", "x w", "c"), fused("FusedMatMul", "c m", alpha=0.5)], {"m": SQUARE}),
    "product of a transposed constant": (
        [node("Conv", "x w", "c"), fused("FusedMatMul", "c m", transB=1)],
        {"m": SQUARE},
    ),
    "product of transposed activations": (
        [node("Conv", "x w", "c"), node("Relu", "c", "r"), fused("FusedMatMul", "c r", transA=1, transB=1, alpha=2.0)],
        {},
    ),
    "transposed activation and constant": (
        [node("Conv", "x w", "c"), fused("FusedMatMul", "c m", transA=1)],
        {"m": SQUARE},
    ),
    **{kind: ([node("Conv", "x w", "c"), fused(kind, "c")], {}) for kind in ("Gelu", "FastGelu", "QuickGelu")},
    "BiasGelu": ([node("Conv", "x w", "c"), fused("BiasGelu", "c row")], {"row": ROW}),
    "FastGelu with a bias": ([node("Conv", "x w", "c"), fused("FastGelu", "c row")], {"row": ROW}),
}


@pytest.mark.parametrize("kind", list(CASES))
def test_load_takes_fused_operators_apart(tmp_path: Path, kind: str) -> None:
    nodes, constants = CASES[kind]
    path = save(tmp_path / "m.onnx", flat(*nodes), constants={"w": WEIGHT, **constants}, dims=(1, *CHW), edit=declare)
    model = load_and_compare(path, atol=1e-4)
    assert {each.domain for each in model.graph.node} == {""}


def test_load_takes_a_fused_product_with_a_bias_apart(tmp_path: Path) -> None:
    nodes = [
        *(node("Conv", "x w", "c"), node("Flatten", "c", "f")),
        fused("FusedGemm", "f m b", "y", transB=1, alpha=0.1, beta=2.0, activation="LeakyRelu", activation_alpha=0.2),
    ]
    constants = {"w": WEIGHT, "m": FC, "b": RNG.normal(size=6).astype(np.float32)}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants, edit=declare), atol=1e-4)
    assert operators(model) == ["Conv", "Flatten", "Gemm", "LeakyRelu"]


@pytest.mark.parametrize("with_bias", [False, True])
def test_load_takes_a_residual_norm_apart(tmp_path: Path, with_bias: bool) -> None:
    nodes = [
        *(node("Conv", "x w", "c"), node("Reshape", "c tokens", "t"), node("Relu", "t", "r")),
        fused("SkipLayerNormalization", f"t r s b{' k' if with_bias else ''}", "n", epsilon=1e-5),
        node("Flatten", "n", "y"),
    ]
    nodes[-2].output.extend(["", "", "sum"])
    nodes[-1] = node("Add", "n sum", "p")
    nodes.append(node("Flatten", "p", "y"))
    constants = {"w": WEIGHT, "tokens": np.array([0, 24, 6]), **dict.fromkeys("sbk", ROW)}
    constants = constants if with_bias else {name: value for name, value in constants.items() if name != "k"}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants, edit=declare), atol=1e-4)
    assert "LayerNormalization" in operators(model)


def test_load_takes_what_onnx_runtime_writes_at_its_extended_level(tmp_path: Path) -> None:
    nodes = [*flat(node("Conv", "x w", "c"), node("Relu", "c", "a"))]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}), options)
    assert "FusedConv" in operators(onnx.load(tmp_path / "fused.onnx"))
    assert operators(load_and_compare(tmp_path / "fused.onnx")) == ["Conv", "Relu", "Flatten"]


WIDE = RNG.normal(size=(8, 3, 3, 3)).astype(np.float32)
QKV, NARROW = (RNG.normal(0, 0.3, (8, width)).astype(np.float32) for width in (24, 20))
QKV_BIAS, NARROW_BIAS = (RNG.normal(size=width).astype(np.float32) for width in (24, 20))
SCORES = RNG.normal(size=(1, 2, 36, 36)).astype(np.float32)
SQUARES = {name: RNG.normal(0, 0.3, (8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")}


def attention(*attention_nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return nodes that make tokens t, [N, 36, 8], and answer y from a of the same form."""
    tokens = [node("Conv", "x w", "c"), node("Reshape", "c sizes", "r"), node("Transpose", "r", "t", perm=[0, 2, 1])]
    return [*tokens, *attention_nodes, node("Flatten", "a", "y")]


ATTENTION: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "with a bias": ([fused("Attention", "t m b", num_heads=2)], {"m": QKV, "b": QKV_BIAS}),
    "of one head": ([fused("Attention", "t m b", num_heads=1)], {"m": QKV, "b": QKV_BIAS}),
    "with a scale": ([fused("Attention", "t m b", num_heads=2, scale=0.7)], {"m": QKV, "b": QKV_BIAS}),
    "of narrow values": (
        [fused("Attention", "t m b", num_heads=2, qkv_hidden_sizes=[8, 8, 4])],
        {"m": NARROW, "b": NARROW_BIAS},
    ),
    "with a bias of the scores": (
        [helper.make_node("Attention", ["t", "m", "b", "", "", "s"], ["a"], "A", domain=MICROSOFT, num_heads=2)],
        {"m": QKV, "b": QKV_BIAS, "s": SCORES},
    ),
    "of three products": (
        [
            *(node("MatMul", f"t w{each}", each) for each in "qkv"),
            fused("MultiHeadAttention", "q k v", num_heads=2),
        ],
        SQUARES,
    ),
    "of three products with a bias each": (
        [
            *(node("MatMul", f"t w{each}", f"{each}m") for each in "qkv"),
            *(node("Add", f"b8 {each}m", each) for each in "qkv"),
            fused("MultiHeadAttention", "q k v", num_heads=4),
        ],
        {**SQUARES, "b8": QKV_BIAS[:8]},
    ),
    "of three products with one bias": (
        [
            *(node("MatMul", f"t w{each}", each) for each in "qkv"),
            helper.make_node(
                *("MultiHeadAttention", ["q", "k", "v", "b", "", "s"], ["a"], "A"), domain=MICROSOFT, num_heads=2
            ),
        ],
        {**SQUARES, "b": QKV_BIAS, "s": SCORES},
    ),
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("kind", list(ATTENTION))
def test_load_takes_attention_apart(tmp_path: Path, kind: str, opset: int) -> None:
    nodes, constants = ATTENTION[kind]
    constants = {"w": WIDE, "sizes": np.array([0, 8, 36]), **constants}
    path = save(tmp_path / "m.onnx", attention(*nodes), opset, constants, edit=declare)
    model = load_and_compare(path, atol=1e-4)
    assert {each.domain for each in model.graph.node} == {""}
    assert operators(model).count("Softmax") == 1


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Attention", ["t", "m", "b", "mask"], ["a"], "A", domain=MICROSOFT, num_heads=2)],
        [fused("Attention", "t m b", num_heads=2, unidirectional=1)],
        [fused("Attention", "t m b", "a present", num_heads=2)],
        [fused("MultiHeadAttention", "t t t", num_heads=2)],
    ],
    ids=["masked", "of what came before", "with its keys as output", "of an unknown width"],
)
def test_load_refuses_attention_that_is_more_than_an_image_needs(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    mask = np.ones((1, 36), np.int32)
    constants = {"w": WIDE, "sizes": np.array([0, 8, 36]), "m": QKV, "b": QKV_BIAS, "mask": mask}
    path = save(tmp_path / "m.onnx", attention(*nodes), constants=constants, edit=declare)
    with pytest.raises(DataError, match=rf"uses operators of ONNX Runtime \(com.microsoft {nodes[-1].op_type}\)"):
        classifier.load(path, CHW)


def test_load_takes_convolutions_with_channels_last_apart(tmp_path: Path) -> None:
    """ONNX Runtime computes them on GPUs only: compared with the convolution that its optimizer makes them of."""
    before = save(
        tmp_path / "n.onnx", flat(node("Conv", "x w b", "a", pads=[1] * 4)), constants={"w": WEIGHT, "b": BIAS}
    )
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
        fused("NhwcConv", "t w b", "c", pads=[1] * 4),
        node("Transpose", "c", "a", perm=[0, 3, 1, 2]),
    ]
    constants = {"w": np.ascontiguousarray(WEIGHT.transpose(0, 2, 3, 1)), "b": BIAS}
    model = classifier.load(save(tmp_path / "m.onnx", flat(*nodes), constants=constants, edit=declare), CHW)
    assert operators(model) == ["Conv", "Flatten"]
    wanted = classifier.run(classifier.load(before, CHW), IMAGES)
    np.testing.assert_allclose(classifier.run(model, IMAGES), wanted, atol=1e-5)


def test_load_refuses_other_operators_of_onnx_runtime_by_their_names(tmp_path: Path) -> None:
    nodes = flat(fused("Rfft", "x", signal_ndim=1))
    path = save(tmp_path / "m.onnx", nodes, edit=declare)
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: uses operators of ONNX Runtime (com.microsoft Rfft), as its optimizer writes them; give the file "
        "from before the optimization, or export the network again"
    )
