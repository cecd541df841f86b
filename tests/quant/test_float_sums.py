"""float_sums.py: which additions make a stream, and that theirs are the only quantizers that go."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import Builder, images, ranges_seen, run_exact

from pipeline.onnx_models.graphs import makers_of
from pipeline.quant.assemble import Parts, assemble
from pipeline.quant.float_sums import find_joins, find_streams, gain_of

CHANNELS = 16


def network(activation: str | None = "Relu") -> tuple[onnx.ModelProto, list[str]]:
    """Return two streams: a projection and two more blocks, then a projection; and the names of the sums."""
    made, sums = Builder(), list[str]()

    def conv(x: str) -> str:
        return made.conv(x, CHANNELS, CHANNELS)

    def block(x: str, skip: str) -> str:
        sums.append(made.op("Add", conv(made.op("Relu", conv(x))), skip))
        return sums[-1] if activation is None else made.op(activation, sums[-1])

    x = made.op("Relu", made.conv("x", 3, CHANNELS))
    x = block(x, conv(x))
    x = block(x, x)
    x = block(x, x)
    x = block(x, conv(x))
    return made.model(made.gemm(made.pooled(x), CHANNELS, 5)), sums


def parts_of(model: onnx.ModelProto, additions: tuple[str, ...] = ()) -> Parts:
    return Parts(ranges=ranges_seen(model, images(32)), per_channel=True, float_sums=additions)


def rounded(model: onnx.ModelProto) -> set[str]:
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def test_find_streams_begins_one_where_no_earlier_sum_is_added() -> None:
    model, sums = network()
    assert find_streams(model) == {sums[0]: ["add0", "add1", "add2"], sums[3]: ["add3"]}
    assert list(find_streams(network(None)[0]).values()) == [["add0", "add1", "add2"], ["add3"]]
    # The function of a Sigmoid is no sum: every block is a stream of its own.
    assert len(find_streams(network("Sigmoid")[0])) == 4


def test_find_joins_are_first_sums_of_two_convolutions_with_others_behind() -> None:
    model, sums = network()
    assert find_joins(model) == {sums[0]: ["add0"]}  # the last stream is one addition
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    for _ in range(2):  # what the first one adds to is no convolution
        x = made.op("Relu", made.op("Add", made.conv(x, 8, 8), x))
    assert find_joins(made.model(made.gemm(made.pooled(x), 8, 5))) == {}


def test_find_streams_leaves_out_constants_sums_without_convolutions_and_convolutions_that_others_read() -> None:
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))
    y = made.conv(x, 8, 8)
    x = made.op("Add", made.op("Add", y, x), y)
    x = made.op("Add", made.conv(x, 8, 8), made.constant(np.ones((1, 8, 1, 1))))
    x = made.op("Add", made.op("Relu", x), made.op("Sigmoid", x))
    assert find_streams(made.model(made.gemm(made.pooled(x), 8, 5))) == {}


@pytest.mark.parametrize("activation", ["Relu", None])
def test_float_sums_take_away_the_quantizers_between_additions_and_keep_convolutions_in_int8(
    activation: str | None,
) -> None:
    model, _ = network(activation)
    plain = assemble(model, parts_of(model)).model
    made = assemble(model, parts_of(model, ("add0", "add1", "add2"))).model
    makers = makers_of(made.graph)
    of_convolutions = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}
    of_convolutions &= {node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    (last,) = (node for node in model.graph.node if node.name == "add3")
    assert rounded(plain) - rounded(made) == of_convolutions - set(last.input)
    for node in made.graph.node:
        if node.op_type == "Conv":
            assert makers[node.input[0]].op_type == "DequantizeLinear", node.name
        if node.name in ("add1", "add2"):  # convolution and stream, both in float32
            assert {makers[name].op_type for name in node.input} == {"Conv", "Relu" if activation else "Add"}
    onnx.checker.check_model(made, full_check=True)
    expected = run_exact(model, images(32))
    assert np.square(run_exact(made, images(32)) - expected).mean() < 0.01 * expected.var()


def test_a_join_in_float_leaves_every_convolution_and_later_sum_in_int8() -> None:
    model, _ = network()
    plain, made = (assemble(model, parts_of(model, additions)).model for additions in ((), ("add0",)))
    (join,) = (node for node in model.graph.node if node.name == "add0")
    assert rounded(plain) - rounded(made) == set(join.input)
    makers = makers_of(made.graph)
    assert all(
        makers[node.input[0]].op_type == "DequantizeLinear" for node in made.graph.node if node.op_type == "Conv"
    )


def test_gain_counts_rounded_convolutions_whole_and_sums_that_are_added_by_half() -> None:
    model, sums = network()
    readers = {node.name: node.input for node in model.graph.node}
    first, projected = readers["add0"]
    inner, stream = readers["add1"]
    costs = {first: 1.0, projected: 2.0, inner: 4.0, stream: 8.0, readers["add3"][0]: 100.0}
    additions = find_streams(model)[sums[0]]
    assert gain_of(model, additions, costs, ()) == 1 + 2 + 4 + 8 / 2
    assert gain_of(model, additions, costs, {projected}) == 1 + 4 + 8 / 2
