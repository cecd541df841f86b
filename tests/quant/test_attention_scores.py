"""attention_scores.py: queries times keys are int8, signed, with few enough steps for every CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, between_convolutions, images, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.quant import qdq
from pipeline.quant.attention_scores import find_scores, score_inputs
from pipeline.quant.qmath import Range
from pipeline.runtimes.base import Runtime

TOKENS, WIDTH = 36, 8


def attention(*, softmax: bool = True) -> onnx.ModelProto:
    """Return a network with one attention over the places of a map; without `softmax`, products alone."""

    def part(made: Builder, x: str) -> str:
        tokens = made.op("Reshape", x, made.constant([0, WIDTH, TOKENS * 4], np.int64))
        query = made.op("Mul", made.op("Transpose", tokens, perm=[0, 2, 1]), made.constant(0.3))
        scores = made.op("MatMul", query, tokens)
        scores = made.op("Softmax", scores, axis=-1) if softmax else made.op("Mul", scores, made.constant(0.01))
        mixed = made.op("MatMul", scores, made.op("Transpose", tokens, perm=[0, 2, 1]))
        back = made.op("Transpose", mixed, perm=[0, 2, 1])
        return made.op("Reshape", back, made.constant([0, WIDTH, 12, 12], np.int64))

    return between_convolutions(part)


def test_find_scores_are_products_that_a_softmax_reads() -> None:
    model = attention()
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert [node.name for node in find_scores(model)] == [products[0].name]
    assert score_inputs(model) == list(products[0].input)
    assert find_scores(attention(softmax=False)) == []


def test_insert_qdq_rounds_queries_to_127_and_keys_to_64_steps_either_side() -> None:
    model = attention()
    query, key = score_inputs(model)
    ranges = {**ranges_seen(model, images()), query: Range(-2.0, 1.0), key: Range(-1.0, 3.0)}
    int8 = qdq.insert_qdq(model, ranges, per_channel=True, scores_in_int8=True)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    makers = {name: node for node in int8.graph.node for name in node.output}
    product = next(node for node in int8.graph.node if node.name == find_scores(model)[0].name)
    pairs = [makers[makers[name].input[0]] for name in product.input]
    assert [each.input[0] for each in pairs] == [query, key]
    assert [known[each.input[1]].item() for each in pairs] == pytest.approx([2 / 127, 3 / 64])
    assert all(known[each.input[2]].dtype == np.int8 and known[each.input[2]] == 0 for each in pairs)
    # What the other operators read of the keys is not rounded.
    assert {node.op_type for node in int8.graph.node if key in node.input} > {"QuantizeLinear"}


@pytest.mark.parametrize("left_out", ["activation", "node", "range"])
def test_insert_qdq_leaves_scores_in_float_when_one_of_both_or_the_product_is_left_out(left_out: str) -> None:
    model = attention()
    ranges, key = ranges_seen(model, images()), score_inputs(model)[1]
    given = {name: covered for name, covered in ranges.items() if left_out != "range" or name != key}
    int8 = qdq.insert_qdq(
        model,
        given,
        per_channel=True,
        scores_in_int8=True,
        float_layers=[find_scores(model)[0].name] if left_out == "node" else [],
        float_activations=[key] if left_out == "activation" else [],
    )
    quantized = {node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    assert not quantized & set(score_inputs(model))


@pytest.mark.parametrize("runtime", list(Runtime))
def test_scores_in_int8_give_the_answers_of_exact_arithmetic(runtime: Runtime, tmp_path: Path) -> None:
    pytest.importorskip(runtime.value, reason=f"needs {runtime.value}")
    model, batch = attention(), images(8, seed=8)
    int8 = qdq.insert_qdq(model, ranges_seen(model, images(32)), per_channel=True, scores_in_int8=True)
    onnx.save(int8, tmp_path / "int8.onnx")
    exact = run_exact(int8, batch)
    assert sqnr_db(run_exact(model, batch), exact) > 20
    assert sqnr_db(exact, run_in(runtime, tmp_path / "int8.onnx", batch)) > 30
