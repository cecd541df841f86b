"""shared_ranges.py: a Concat copies levels, and what only moves values keeps their scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_graphs import Builder, between_convolutions, images, ranges_seen, run_exact, run_in, sqnr_db

from pipeline.quant import placement, qdq
from pipeline.quant.qmath import Range
from pipeline.quant.shared_ranges import share_ranges
from pipeline.runtimes.base import Runtime


def shared(model: onnx.ModelProto, **ranges: Range) -> dict[str, Range]:
    sources = placement.range_sources(model)
    other = Range(-1.0, 1.0)
    return share_ranges(model, sources, {name: ranges.get(source, other) for name, source in sources.items()})


def two_branches(first: str, second: str, *, read_again: bool = False) -> tuple[onnx.ModelProto, str, str, str]:
    """Return a network that joins two convolutions behind activations, and the names of both and of the joined."""
    made = Builder()
    x = made.op("Relu", made.conv("x", 3, 8))

    def branch(kind: str) -> str:
        y = made.conv(x, 8, 4)
        return {"": lambda: y, "relu": lambda: made.op("Relu", y), "relu6": lambda: made.clip(y, 0, 6)}[kind]()

    one, other = branch(first), branch(second)
    whole = made.op("Concat", one, other, axis=1)
    y = made.conv(whole, 8, 8)
    if read_again:
        y = made.op("Add", y, made.conv(one, 4, 8))
    return made.model(made.gemm(made.pooled(made.op("Relu", y)), 8, 5)), one, other, whole


def test_share_ranges_gives_what_only_a_concat_reads_its_range() -> None:
    model, one, other, whole = two_branches("", "")
    ranges = {one: Range(-1.0, 1.0), other: Range(-0.1, 5.0), whole: Range(-1.0, 4.0)}
    found = shared(model, **ranges)
    assert {found[name] for name in ranges} == {Range(-1.0, 4.0)}


@pytest.mark.parametrize(("high", "is_shared"), [(4.0, True), (3.3, True), (3.1, False), (1.0, False)])
def test_share_ranges_widens_what_others_read_by_a_quarter_at_most(high: float, is_shared: bool) -> None:
    model, one, other, whole = two_branches("relu", "relu", read_again=True)
    found = shared(model, **{one: Range(0.0, high), other: Range(0.0, 2.0), whole: Range(0.0, 4.0)})
    assert found[one] == (Range(0.0, 4.0) if is_shared else Range(0.0, high))
    assert found[other] == found[whole] == Range(0.0, 4.0)


@pytest.mark.parametrize(
    ("first", "second", "joined", "first_shared"),
    [
        ("relu", "", Range(-2.0, 4.0), False),  # the quantizer would no longer clip at zero
        ("relu6", "relu", Range(0.0, 8.0), False),  # nor at 6
        ("relu6", "relu", Range(0.0, 5.0), True),
    ],
)
def test_share_ranges_leaves_an_activation_to_its_quantizer(
    first: str, second: str, joined: Range, *, first_shared: bool
) -> None:
    model, one, other, whole = two_branches(first, second)
    own = Range(0.0, 3.0)
    found = shared(model, **{one: own, other: joined, whole: joined})
    assert found[one] == (joined if first_shared else own)
    assert found[other] == joined


def test_share_ranges_passes_the_last_range_on_when_a_concat_joins_a_concat() -> None:
    made = Builder()
    parts = [made.conv("x", 3, 4) for _ in range(3)]
    inner = made.op("Concat", parts[0], parts[1], axis=1)
    outer = made.op("Concat", inner, parts[2], axis=1)
    model = made.model(made.gemm(made.pooled(made.conv(outer, 12, 8)), 8, 5))
    found = shared(model, **{inner: Range(-2.0, 2.0), outer: Range(-3.0, 3.0)})
    assert {found[name] for name in (*parts, inner, outer)} == {Range(-3.0, 3.0)}


def test_share_ranges_covers_a_chain_of_concats_by_one_range_when_they_are_alike() -> None:
    """As a ShuffleNet passes half of its channels on, through all of its blocks."""
    model, wholes = shuffling(blocks=3)
    ranges = {name: Range(0.0, high) for name, high in zip(wholes, (4.0, 4.4, 4.8), strict=True)}
    assert {shared(model, **ranges)[name] for name in wholes} == {Range(0.0, 4.8)}


def shuffling(blocks: int) -> tuple[onnx.ModelProto, list[str]]:
    """Return a network that splits its channels, changes half of them, joins and shuffles them; and what it joins."""
    made = Builder()
    x, wholes = made.op("Relu", made.conv("x", 3, 8)), list[str]()
    for _ in range(blocks):
        kept, changed = f"kept{len(wholes)}", f"changed{len(wholes)}"
        made.op("Split", x, made.constant([4, 4], np.int64), axis=1)
        made.rename_last(kept, changed)
        wholes.append(made.op("Concat", kept, made.op("Relu", made.conv(changed, 4, 4)), axis=1))
        apart = made.op("Reshape", wholes[-1], made.constant([0, 2, 4, 12, 12], np.int64))
        x = made.op(
            "Reshape", made.op("Transpose", apart, perm=[0, 2, 1, 3, 4]), made.constant([0, 8, 12, 12], np.int64)
        )
    return made.model(made.gemm(made.pooled(made.conv(x, 8, 8)), 8, 5)), wholes


def test_insert_qdq_rounds_once_what_passes_through_all_blocks() -> None:
    """All quantizers of what is joined, moved and split have one scale, so that they give equal levels."""
    model, wholes = shuffling(blocks=3)
    alike = dict.fromkeys(wholes, Range(0.0, 5.0))
    seen = {name: alike.get(name, covered) for name, covered in ranges_seen(model, images()).items()}
    int8 = qdq.insert_qdq(model, seen, per_channel=True)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    scale = {node.input[0]: known[node.input[1]].item() for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    moved = [name for node in int8.graph.node if node.op_type in ("Split", "Transpose") for name in node.output]
    assert len({scale[name] for name in (*wholes, *moved)}) == 1


MOVES: dict[str, Callable[[Builder, str], str]] = {
    "slice": lambda made, x: widened(
        made, made.op("Slice", x, *(made.constant([value], np.int64) for value in (2, 6, 1)))
    ),
    "slice of a relu": lambda made, x: widened(
        made, made.op("Slice", made.op("Relu", x), *(made.constant([value], np.int64) for value in (0, 4, 1)))
    ),
    "depth to space": lambda made, x: made.op("SpaceToDepth", made.op("DepthToSpace", x, blocksize=2), blocksize=2),
}


def widened(made: Builder, x: str) -> str:
    return made.conv(x, 4, 8)


@pytest.mark.parametrize("runtime", list(Runtime)[1:])
@pytest.mark.parametrize("name", [*MOVES, "split"])
def test_insert_qdq_keeps_the_scale_of_what_is_moved(name: str, runtime: Runtime, tmp_path: Path) -> None:
    model = shuffling(blocks=2)[0] if name == "split" else between_convolutions(MOVES[name])
    batch = images()
    int8 = qdq.insert_qdq(model, ranges_seen(model, batch), per_channel=True)
    makers = {output: node for node in int8.graph.node for output in node.output}
    moves = [node for node in int8.graph.node if node.op_type in ("Slice", "Split", "DepthToSpace", "SpaceToDepth")]
    readers = {node.input[0]: node for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    assert moves
    for node in moves:
        dequantizer = makers[node.input[0]]
        scales = {known[each.input[1]].item() for each in (dequantizer, *(readers[output] for output in node.output))}
        assert len(scales) == 1
    onnx.save(int8, tmp_path / "int8.onnx")
    exact = run_exact(int8, batch)
    assert sqnr_db(run_exact(model, batch), exact) > 25
    assert sqnr_db(exact, run_in(runtime, tmp_path / "int8.onnx", batch)) > 25
