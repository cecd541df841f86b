"""Operators of opsets 1 to 6, held against the same network written in opset 13."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, Constants, flat, node, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier
from pipeline.onnx_models.raw_file import RawFile

CHANNELS = len(WEIGHT)
ROWS = RNG.normal(size=(CHANNELS, 5)).astype(np.float32)
NORM = {name: RNG.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for name in ("s", "b", "m", "v")}
SLOPE = np.linspace(0.1, 0.9, CHANNELS, dtype=np.float32)
CONV = node("Conv", "x w", "c")
RELU = node("Relu", "n", "a")
OLD = {"consumed_inputs": [0]}


def norm(opset: int, output: str = "n", **attributes: int) -> onnx.NodeProto:
    """Return a batch norm of what the convolution makes, as after training."""
    old = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {}
    is_test = {"is_test": 1} if opset < 7 else {}
    return node("BatchNormalization", "c s b m v", output, **{**old, **is_test, **attributes})


# What is tried, the opsets, the old network, the one of opset 13, its constants where those of the old are others.
Case = tuple[str, tuple[int, ...], list[onnx.NodeProto], list[onnx.NodeProto], Constants, Constants]
CASES: list[Case] = [
    ("batch norm", (1, 3, 5), flat(CONV, norm(5), RELU), flat(CONV, norm(13), RELU), NORM, {}),
    ("batch norm", (6,), flat(CONV, norm(6), RELU), flat(CONV, norm(13), RELU), NORM, {}),
    ("consumed inputs", (1, 5), flat(CONV, node("Relu", "c", "a", **OLD)), flat(CONV, node("Relu", "c", "a")), {}, {}),
    (
        "dropout",
        (1, 6),
        flat(CONV, node("Dropout", "c", "a", is_test=1, ratio=0.5)),
        flat(CONV, node("Identity", "c", "a")),
        {},
        {},
    ),
    (
        "reshape by an attribute, gemm that broadcasts",
        (1, 3, 4),
        [
            *(CONV, node("GlobalAveragePool", "c", "g"), node("Reshape", "g", "r", shape=[0, -1])),
            node("Gemm", "r rows bias", "y", broadcast=1),
        ],
        [CONV, node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "r"), node("Gemm", "r rows bias", "y")],
        {"rows": ROWS, "bias": np.arange(5, dtype=np.float32)},
        {},
    ),
    (
        "a slope a channel",
        (1, 6),
        flat(CONV, node("PRelu", "c slope", "a")),
        flat(CONV, node("PRelu", "c slope", "a")),
        {"slope": SLOPE},
        {"slope": SLOPE[:, None, None]},
    ),
    (
        "one slope",
        (1, 6),
        flat(CONV, node("PRelu", "c slope", "a")),
        flat(CONV, node("PRelu", "c slope", "a")),
        {"slope": np.array([0.2], np.float32)},
        {},
    ),
    (
        "a mean that the network subtracts",
        (1, 3, 6),
        flat(node("Sub", "x mean", "d", broadcast=1, axis=1), node("Conv", "d w", "a")),
        flat(node("Sub", "x mean", "d"), node("Conv", "d w", "a")),
        {"mean": np.array([0.1, 0.2, 0.3], np.float32)},
        {"mean": np.array([0.1, 0.2, 0.3], np.float32)[:, None, None]},
    ),
    (
        "a computed operand",
        (1, 6),
        flat(
            *(CONV, node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "f")),
            node("Mul", "c f", "a", broadcast=1, axis=0),
        ),
        flat(CONV, node("GlobalAveragePool", "c", "g"), node("Mul", "c g", "a")),
        {},
        {},
    ),
    (
        "a type by its name",
        (1, 5),
        flat(CONV, node("Cast", "c", "h", to="INT32"), node("Cast", "h", "a", to="FLOAT")),
        flat(CONV, node("Cast", "c", "h", to=TensorProto.INT32), node("Cast", "h", "a", to=TensorProto.FLOAT)),
        {},
        {},
    ),
    (
        "channels side by side",
        (1, 3),
        flat(node("Concat", "x x", "a")),
        flat(node("Concat", "x x", "a", axis=1)),
        {},
        {},
    ),
    (
        "paddings",
        (1,),
        flat(node("Pad", "x", "a", paddings=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5)),
        flat(node("Pad", "x pads value", "a")),
        {},
        {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "value": np.float32(0.5)},
    ),
]


@pytest.mark.parametrize(
    ("opset", "case"), [pytest.param(opset, case, id=f"{case[0]}-{opset}") for case in CASES for opset in case[1]]
)
def test_load_gives_what_the_operators_of_the_first_opsets_mean(tmp_path: Path, opset: int, case: Case) -> None:
    _, _, old, now, constants, changed = case
    path = save(tmp_path / "old.onnx", old, opset, {"w": WEIGHT, **constants}, ir=3, inputs_too=True)
    same = save(tmp_path / "now.onnx", now, 13, {"w": WEIGHT, **constants, **changed})
    found = classifier.run(classifier.load(path, CHW), IMAGES)
    np.testing.assert_allclose(found, RawFile(same, None).answers(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (norm(3, "a", is_test=0), "(BatchNormalization) is in training mode; export it after"),
        (node("Dropout", "c", "a"), "(Dropout) is in training mode; export it after model.eval()"),
        (node("Tile", "c t t", "a"), "Tile of opset 3 (node 'Tile_a') has no equal in opset 17"),
        (
            norm(3, "a", spatial=0),
            "BatchNormalization of opset 3 (node 'BatchNormalization_a') has no equal in opset 17",
        ),
    ],
)
def test_load_names_what_has_no_equal(tmp_path: Path, made: onnx.NodeProto, words: str) -> None:
    constants = {"w": WEIGHT, **NORM, "t": np.ones(1, np.float32)}
    path = save(tmp_path / "m.onnx", flat(CONV, made), 3, constants)
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert words in str(caught.value)
