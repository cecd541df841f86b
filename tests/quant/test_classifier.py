"""classifier.py and what placement.py makes of it: the classifier by structure, and what stays in float32 with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graphs import Builder, images, kinds_of, ranges_seen, run_exact, sqnr_db

from pipeline.onnx_models import classifier as onnx_classifier
from pipeline.quant import placement, qdq
from pipeline.quant.classifier import find_classifier, tail_tensors
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.executed import count_int8

Head = Callable[[Builder, str], str]


def matmul(made: Builder, x: str, inputs: int = 8) -> str:
    product = made.op("MatMul", x, made.constant(made.normal(inputs, 5)))
    return made.op("Add", product, made.constant(made.normal(5)))


def pointwise(made: Builder, x: str) -> str:
    return made.op("Conv", x, made.constant(made.normal(5, 8, 1, 1)), made.constant(made.normal(5)))


def by_computed_shape(made: Builder, x: str) -> str:
    """As PaddlePaddle's files with a free batch have it: the shape of the pooled tensor is read, to flatten it."""
    pooled = made.op("GlobalAveragePool", x)
    batch = made.op("Slice", made.op("Shape", pooled), *(made.constant([at], np.int64) for at in (0, 1, 0)))
    shape = made.op("Concat", batch, made.constant([-1], np.int64), axis=0)
    return matmul(made, made.op("Reshape", pooled, shape))


def in_float64(made: Builder, x: str) -> str:
    wide = made.op("Cast", made.pooled(x), to=onnx.TensorProto.DOUBLE)
    product = made.op("MatMul", wide, made.constant(made.normal(8, 5), np.float64))
    return made.op("Cast", product, to=onnx.TensorProto.FLOAT)


def two_of_one(made: Builder, x: str) -> str:
    pooled = made.pooled(x)
    return made.op("Add", made.gemm(pooled, 8, 5), made.gemm(pooled, 8, 5))


def two_of_two(made: Builder, x: str) -> str:
    return made.op(
        "Add", made.gemm(made.pooled(x), 8, 5), made.gemm(made.op("Flatten", made.op("GlobalMaxPool", x)), 8, 5)
    )


def with_hidden(made: Builder, x: str) -> str:
    return made.gemm(made.op("Relu", made.gemm(made.pooled(x), 8, 8)), 8, 5)


# A head, its classifier, and the operators that make what stays in float with it.
HEADS: dict[str, tuple[Head, list[str], list[str]]] = {
    "Gemm": (lambda made, x: made.gemm(made.pooled(x), 8, 5), ["gemm0"], ["GlobalAveragePool"]),
    "Softmax": (
        lambda made, x: made.op("Softmax", made.gemm(made.pooled(x), 8, 5), axis=1),
        ["gemm0"],
        ["GlobalAveragePool"],
    ),
    "Sigmoid": (lambda made, x: made.op("Sigmoid", made.gemm(made.pooled(x), 8, 5)), ["gemm0"], ["GlobalAveragePool"]),
    "MatMul, Add": (lambda made, x: matmul(made, made.pooled(x)), ["matmul0"], ["GlobalAveragePool"]),
    "MatMul, Add, Softmax": (
        lambda made, x: made.op("Softmax", matmul(made, made.pooled(x)), axis=1),
        ["matmul0"],
        ["GlobalAveragePool"],
    ),
    "Reshape, Identity": (
        lambda made, x: made.op(
            "Identity", made.op("Reshape", made.gemm(made.pooled(x), 8, 5), made.constant([-1, 5], np.int64))
        ),
        ["gemm0"],
        ["GlobalAveragePool"],
    ),
    "1x1 convolution after pooling": (
        lambda made, x: made.op("Flatten", pointwise(made, made.op("GlobalAveragePool", x))),
        ["conv2"],
        ["Conv", "GlobalAveragePool"],
    ),
    # This costs a twentieth of the network and more, with the layer before it: it stays in int8.
    "1x1 convolution before pooling": (lambda made, x: made.pooled(pointwise(made, x)), ["conv2"], []),
    "two heads on one tensor": (two_of_one, ["gemm0", "gemm1"], ["GlobalAveragePool"]),
    "two heads on two": (two_of_two, ["gemm0", "gemm1"], ["GlobalAveragePool", "GlobalMaxPool"]),
    "computed shape": (by_computed_shape, ["matmul0"], ["GlobalAveragePool"]),
    "float64": (in_float64, ["matmul0"], ["GlobalAveragePool"]),
    "hidden layer": (with_hidden, ["gemm1"], ["Relu"]),
}


def network(head: Head) -> onnx.ModelProto:
    made = Builder()
    x = made.op("Relu", made.conv(made.op("Relu", made.conv("x", 3, 8)), 8, 8))
    return made.model(head(made, x))


@pytest.mark.parametrize("name", HEADS)
def test_find_classifier_names_the_layers_that_no_layer_follows(name: str) -> None:
    head, wanted, _ = HEADS[name]
    assert [node.name for node in find_classifier(network(head))] == wanted


@pytest.mark.parametrize("name", HEADS)
def test_classifier_inputs_are_what_only_the_classifier_reads(name: str) -> None:
    head, _, wanted = HEADS[name]
    model = network(head)
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    found = placement.classifier_inputs(model)
    assert found <= set(placement.observed_tensors(model))
    assert sorted(makers[each] for each in found) == wanted


@pytest.mark.parametrize("name", [name for name, (_, _, in_float) in HEADS.items() if in_float])
def test_insert_qdq_leaves_the_classifier_in_float_with_everything_behind_it(name: str, tmp_path: Path) -> None:
    head, classifier, _ = HEADS[name]
    model = network(head)
    int8 = qdq.insert_qdq(
        model,
        ranges_seen(model, images()),
        per_channel=True,
        float_activations=placement.classifier_inputs(model),
    )
    tail = tail_tensors(model, find_classifier(model))
    assert not any(node.input[0] in tail for node in int8.graph.node if node.op_type == "QuantizeLinear")
    onnx.save(int8, tmp_path / "m.onnx")
    float_layers = set(count_int8(Runtime.ONNXRUNTIME, tmp_path / "m.onnx")["float_layers"])
    hidden = (
        {"gemm0"} if name == "hidden layer" else set()
    )  # ONNX Runtime fuses its Relu before it looks for quantizers
    assert float_layers - hidden == set(classifier)
    assert sqnr_db(run_exact(model, images()), run_exact(int8, images())) > 38


@pytest.mark.parametrize("name", ["MatMul, Add, Softmax", "two heads on one tensor"])
def test_insert_qdq_leaves_the_scores_in_float_when_the_classifier_is_int8(name: str) -> None:
    model = network(HEADS[name][0])
    int8 = qdq.insert_qdq(model, ranges_seen(model, images()), per_channel=True)
    assert qdq.count_quantized(int8) == {
        "weighted": len(kinds_of(model, "Conv", "Gemm", "MatMul")),
        "quantized": 2 + len(HEADS[name][1]),
    }
    scores = tail_tensors(model, find_classifier(model))
    assert not any(node.input[0] in scores for node in int8.graph.node if node.op_type == "QuantizeLinear")


def test_find_classifier_finds_none_when_the_scores_are_a_product_of_activations() -> None:
    made = Builder()
    features = made.pooled(made.op("Relu", made.conv("x", 3, 5)))
    rows = made.op("Unsqueeze", features, made.constant([1], np.int64))
    columns = made.op("Transpose", rows, perm=[0, 2, 1])
    model = made.model(made.op("Flatten", made.op("MatMul", columns, rows)), classes=25)
    assert find_classifier(model) == []
    assert placement.classifier_inputs(model) == frozenset()


def test_find_classifier_leaves_out_layers_that_another_layer_reads() -> None:
    made = Builder()
    first = made.gemm(made.pooled(made.op("Relu", made.conv("x", 3, 8))), 8, 5)
    model = made.model(made.op("Add", first, made.gemm(made.op("Relu", first), 5, 5)))
    assert [node.name for node in find_classifier(model)] == ["gemm1"]


def test_load_keeps_the_classifier_known_when_the_file_computes_shapes(tmp_path: Path) -> None:
    onnx.save(network(by_computed_shape), tmp_path / "m.onnx")
    model = onnx_classifier.load(tmp_path / "m.onnx", (3, 12, 12))
    assert len(find_classifier(model)) == len(placement.classifier_inputs(model)) == 1
