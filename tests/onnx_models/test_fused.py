"""fused.py: files that ONNX Runtime's optimizer wrote, taken apart again, to the values of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_fixtures import CHW, RNG, WEIGHT, flat, load_and_compare, node, operators, save

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


def test_load_refuses_other_operators_of_onnx_runtime_by_their_names(tmp_path: Path) -> None:
    nodes = flat(fused("Rfft", "x", signal_ndim=1))
    path = save(tmp_path / "m.onnx", nodes, edit=declare)
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: uses operators of ONNX Runtime (com.microsoft Rfft), as its optimizer writes them; give the file "
        "from before the optimization, or export the network again"
    )
