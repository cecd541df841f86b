"""sigmoids.py: sigmoids written in other operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_fixtures import WEIGHT, flat, load_and_compare, node, operators, save

ONE, MINUS = {"one": np.float32(1)}, {"minus": np.array([-1], np.float32)}
NEGATED = [node("Neg", "c", "n"), node("Exp", "n", "e"), node("Add", "e one", "d")]
FORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], list[str]]] = {
    "1 / (1 + exp(-x))": ([*NEGATED, node("Div", "one d", "a")], ONE, ["Sigmoid"]),
    "reciprocal": (
        [node("Mul", "minus c", "n"), node("Exp", "n", "e"), node("Add", "one e", "d"), node("Reciprocal", "d", "a")],
        ONE | MINUS,
        ["Sigmoid"],
    ),
    "x / (1 + exp(-x))": ([*NEGATED, node("Div", "c d", "a")], ONE, ["Sigmoid", "Mul"]),
    "exp(x) / (1 + exp(x))": (
        [node("Exp", "c", "e"), node("Add", "e one", "d"), node("Div", "e d", "a")],
        ONE,
        ["Sigmoid"],
    ),
}
OTHERS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "1 + exp(x)": ([node("Exp", "c", "e"), node("Add", "e one", "d"), node("Div", "c d", "a")], ONE),
    "2 + exp(-x)": (
        [node("Neg", "c", "n"), node("Exp", "n", "e"), node("Add", "e two", "d"), node("Div", "c d", "a")],
        {"two": np.float32(2)},
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_load_writes_a_sigmoid(tmp_path: Path, form: str) -> None:
    nodes, constants, wanted = FORMS[form]
    path = save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), *nodes), constants={"w": WEIGHT, **constants})
    assert operators(load_and_compare(path)) == ["Conv", *wanted, "Flatten"]


@pytest.mark.parametrize("form", list(OTHERS))
def test_load_leaves_what_is_no_sigmoid(tmp_path: Path, form: str) -> None:
    nodes, constants = OTHERS[form]
    path = save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), *nodes), constants={"w": WEIGHT, **constants})
    assert "Sigmoid" not in operators(load_and_compare(path))
