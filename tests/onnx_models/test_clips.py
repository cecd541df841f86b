"""clips.py: Max and Min with one number as Relu and Clip, to the same values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from small_graphs import Builder, between_convolutions, images, kinds_of, run_exact

from pipeline.onnx_models import clips

Part = Callable[[Builder, str], str]

REWRITTEN: dict[str, tuple[Part, list[str]]] = {
    "Max with 0": (lambda made, x: made.op("Max", x, made.constant(0)), ["Relu"]),
    "0 first": (lambda made, x: made.op("Max", made.constant(0), x), ["Relu"]),
    "Max with a number": (lambda made, x: made.op("Max", x, made.constant(-0.3)), ["Clip"]),
    "Min": (lambda made, x: made.op("Min", x, made.constant([0.7])), ["Clip"]),
    "both": (
        lambda made, x: made.op("Min", made.op("Max", x, made.constant(-0.3)), made.constant([[[[0.7]]]])),
        ["Clip", "Clip"],
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_use_clips_gives_the_same_values_when_one_of_two_inputs_is_a_number(name: str) -> None:
    part, kinds = REWRITTEN[name]
    model = between_convolutions(part)
    expected = run_exact(model, images())
    clips.use_clips(model)
    onnx.checker.check_model(model, full_check=True)
    assert kinds_of(model, "Max", "Min") == []
    assert [node.op_type for node in model.graph.node if node.name.startswith(("max", "min"))] == kinds
    np.testing.assert_array_equal(run_exact(model, images()), expected)


@pytest.mark.parametrize(
    "part",
    [
        lambda made, x: made.op("Max", x, made.op("Relu", x)),
        lambda made, x: made.op("Max", x, made.constant(np.linspace(-1, 1, 8).reshape(8, 1, 1))),
        lambda made, x: made.op("Max", x, made.constant(0), made.constant(1)),
    ],
)
def test_use_clips_changes_nothing_when_there_is_no_single_number(part: Part) -> None:
    model = between_convolutions(part)
    before = model.SerializeToString(deterministic=True)
    clips.use_clips(model)
    assert model.SerializeToString(deterministic=True) == before
