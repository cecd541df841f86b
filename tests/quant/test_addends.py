"""addends.py: how far what an addition reads has to be covered, and which of two convolutions comes first."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import Builder, images, ranges_seen

from pipeline.onnx_models.graphs import makers_of
from pipeline.quant import bfloat16, qdq
from pipeline.quant.addends import Addend, added_within, find_addends
from pipeline.quant.counting import Counter, Counts
from pipeline.quant.qmath import Range, percentile_range


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


def residual_block(activation: str = "Relu", *, read_again: bool = False) -> tuple[onnx.ModelProto, str, str]:
    """Return a network that adds a convolution to its input, and the names of both addends."""
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 16))
    y = made.conv(x, 16, 16)
    whole = made.op(activation, made.op("Add", y, x))
    if read_again:
        whole = made.op("Add", whole, y)
    return made.model(made.gemm(made.pooled(whole), 16, 5)), y, x


def test_find_addends_finds_convolutions_that_only_an_addition_before_a_relu_reads() -> None:
    model, convolution, other = residual_block()
    assert find_addends(model, {convolution, other}) == {convolution: Addend(other, both=False)}
    assert find_addends(model, {other}) == {}  # the convolution has the range of another tensor
    assert find_addends(residual_block("Sigmoid")[0], {convolution}) == {}
    assert find_addends(residual_block(read_again=True)[0], {convolution}) == {}


def test_find_addends_finds_both_convolutions_of_a_projection() -> None:
    model = projection_block(1.0, 1.0)
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    one, other = add.input
    found = find_addends(model, {one, other})
    assert found == {one: Addend(other, both=True), other: Addend(one, both=True)}


def test_added_within_names_the_only_convolution_or_the_one_with_the_wider_range() -> None:
    model, convolution, other = residual_block()
    ranges = {convolution: Range(-1.0, 1.0), other: Range(0.0, 9.0)}
    assert added_within(model, ranges) == {convolution}
    assert added_within(residual_block(read_again=True)[0], ranges) == frozenset()
    model = projection_block(1.0, 1.0)
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    one, two = add.input
    assert added_within(model, {one: Range(-1.0, 3.0), two: Range(-2.0, 1.0)}) == {one}
    assert added_within(model, {one: Range(-1.0, 1.0), two: Range(-2.0, 1.0)}) == {two}


@pytest.mark.parametrize("both", [False, True])
def test_raising_addends_as_far_as_needed_changes_no_relu(both: bool) -> None:
    random = np.random.default_rng(0)
    values, others = random.normal(-1, 3, (2, 10_000)).astype(np.float32)
    # In float32 the sum of what was raised may be a rounding error above zero.
    below, rounding = values < 0, 1e-6 * np.abs(values).max()
    needed = np.where(below, Addend("other", both).needed(values, others), values)
    assert (needed >= values).all() and (needed[below] <= 0).all()
    beside = others
    if both:
        beside = np.where(others < 0, Addend("one", both).needed(others, values), others)
    for bound in (-np.inf, -2.0, -0.5):  # a quantizer raises to a bound at most, which those above are not moved by
        raised = [
            np.maximum(each, np.minimum(need, np.maximum(each, bound)))
            for each, need in ((values, needed), (others, beside))
        ]
        np.testing.assert_allclose(
            np.maximum(raised[0] + raised[1], 0), np.maximum(values + others, 0), atol=2 * rounding
        )


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("listed", [1, 100_000])
def test_counter_covers_of_an_addend_what_the_relu_lets_through(halves: bool, listed: int) -> None:
    model, convolution, other = residual_block()
    counter = Counter(model)
    counts = Counts(counter.observed, listed)
    random = np.random.default_rng(1)

    def image() -> dict[str, np.ndarray]:
        values = {name: random.normal(0, 2, (1, 40, 40, 16)).astype(np.float32) for name in counter.read}
        values[other] = np.maximum(values[other], 0)
        bits = {name: (each.view(np.uint32) >> 16).astype(np.uint16) for name, each in values.items()}
        return bits if halves else values

    seen = [image() for _ in range(6)]
    counter.set_tails(counts, seen[:2])
    for values in seen:
        counter.count(counts, values, fitting=True)
    widened = [{name: bfloat16.widen(each) for name, each in values.items()} for values in seen]
    wanted = np.concatenate([np.maximum(each[convolution], -each[other]).reshape(-1) for each in widened])
    observer = counts.observers.observers[convolution]
    outside = int(wanted.size * 0.0005)
    low = percentile_range(observer.counts, observer.lowest, observer.highest, 99.95).low
    assert low == pytest.approx(np.sort(wanted)[outside], rel=0.01)
    alone = np.sort(np.concatenate([each[convolution].reshape(-1) for each in widened]))
    assert low > 0.8 * alone[outside]
    assert (observer.counts >= 0).all()
    assert observer.counts.sum() == pytest.approx(wanted.size, rel=0.05)
