"""layer_norms.py: norms in every spelling become LayerNormalization, and what is none stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_fixtures import CHW, IMAGES, RNG, Float32, node, operators, save

from pipeline.onnx_models import classifier

CHANNELS = 12
EPSILON = 1e-3
CONSTANTS: dict[str, Float32] = {
    "w": RNG.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32),
    "s": RNG.uniform(0.5, 2, CHANNELS).astype(np.float32),
    "b": RNG.normal(size=CHANNELS).astype(np.float32),
    "fc": RNG.normal(size=(CHANNELS, 5)).astype(np.float32),
    "e": np.float32(EPSILON).reshape(()),
    "two": np.float32(2).reshape(()),
    "one": np.float32(1).reshape(()),
    "zero": np.float32(0).reshape(()),
    "minus_half": np.float32(-0.5).reshape(()),
    "low": np.float32(-100).reshape(()),
    "high": np.float32(100).reshape(()),
    "count": np.float32(CHANNELS).reshape(()),
}
Nodes = list[onnx.NodeProto]


def mean(source: str, output: str) -> onnx.NodeProto:
    return node("ReduceMean", source, output, axes=[-1], keepdims=1)


CENTRED = [mean("t", "m"), node("Sub", "t m", "d")]
OF_SQUARES = [
    *(mean("t", "m"), node("Mul", "t t", "tt"), mean("tt", "q"), node("Mul", "m m", "mm"), node("Sub", "q mm", "v")),
]
VARIANCE = [*CENTRED, node("Mul", "d d", "dd"), mean("dd", "v")]
ROOT = [node("Add", "v e", "ve"), node("Sqrt", "ve", "r")]
SPELLINGS: dict[str, Nodes] = {
    "flax": [
        *OF_SQUARES[:-1],
        *(node("Sub", "q mm", "u"), node("Max", "u zero", "v"), *ROOT, node("Reciprocal", "r", "i")),
        *(node("Mul", "i s", "is"), node("Sub", "t m", "d"), node("Mul", "d is", "n"), node("Add", "n b", "y")),
    ],
    "powers": [
        *(*CENTRED, node("Pow", "d two", "dd"), mean("dd", "v"), node("Add", "v e", "ve")),
        *(
            node("Pow", "ve minus_half", "i"),
            node("Mul", "d i", "n"),
            node("Mul", "n s", "ns"),
            node("Add", "ns b", "y"),
        ),
    ],
    "keras": [
        *(*VARIANCE, *ROOT, node("Div", "one r", "i"), node("Mul", "i s", "f"), node("Mul", "t f", "tf")),
        *(node("Mul", "m f", "mf"), node("Sub", "b mf", "o"), node("Add", "tf o", "y")),
    ],
    "sums": [
        *(node("ReduceSum", "t last", "a", keepdims=1), node("Div", "a count", "m"), node("Sub", "t m", "d")),
        *(node("Mul", "d d", "dd"), node("ReduceSum", "dd last", "z", keepdims=1), node("Div", "z count", "v")),
        *(*ROOT, node("Div", "d r", "n"), node("Mul", "s n", "ns"), node("Add", "b ns", "y")),
    ],
    "jax's own variance": [
        *(*CENTRED, node("Mul", "d d", "dd"), mean("dd", "u"), node("ReduceMin", "t", "low_t", axes=[-1], keepdims=1)),
        *(node("ReduceMax", "t", "high_t", axes=[-1], keepdims=1), node("Equal", "low_t high_t", "same")),
        *(node("Where", "same zero u", "v"), *ROOT, node("Reciprocal", "r", "i"), node("Mul", "i s", "is")),
        *(node("Mul", "d is", "n"), node("Add", "n b", "y")),
    ],
    "without scale and bias": [*VARIANCE, *ROOT, node("Div", "d r", "y")],
}
OTHERS: dict[str, Nodes] = {
    "of values with a limit": [
        node("Clip", "t low high", "u"),
        *(
            node(
                each.op_type,
                " ".join("u" if name == "t" else name for name in each.input),
                each.output[0],
                **{a.name: onnx.helper.get_attribute_value(a) for a in each.attribute},
            )
            for each in (*VARIANCE, *ROOT, node("Div", "d r", "y"))
        ),
    ],
    "of the root mean square": [
        *(node("Mul", "t t", "tt"), mean("tt", "v"), *ROOT, node("Div", "t r", "n"), node("Mul", "n s", "y")),
    ],
    "epsilon beside the root": [*VARIANCE, node("Sqrt", "v", "r"), node("Add", "r e", "re"), node("Div", "d re", "y")],
    "another mean": [*VARIANCE, *ROOT, node("Mul", "m two", "mm"), node("Sub", "t mm", "o"), node("Div", "o r", "y")],
    "a scale for each position": [*VARIANCE, *ROOT, node("Div", "d r", "n"), node("Mul", "n places", "y")],
}


def load(path: Path, nodes: Nodes) -> tuple[onnx.ModelProto, Float32]:
    """Load a norm of 36 positions of `CHANNELS` between a convolution and a product; return also what enters it."""
    start = [node("Conv", "x w", "c"), node("Reshape", "c rows", "cr"), node("Transpose", "cr", "t", perm=[0, 2, 1])]
    end = [node("MatMul", "y fc", "p"), node("ReduceMean", "p", "out", axes=[1], keepdims=0)]
    constants = {
        **CONSTANTS,
        "rows": np.array([0, CHANNELS, 36]),
        "last": np.array([-1]),
        "places": np.linspace(1, 2, 36, dtype=np.float32)[:, None],
    }
    save(path, [*start, *nodes, *end], constants=constants, outputs={"out": ("N", 5)})
    windows = np.lib.stride_tricks.sliding_window_view(IMAGES, (3, 3), (2, 3))
    maps = np.einsum("nchwij,ocij->nhwo", windows, CONSTANTS["w"]).reshape(len(IMAGES), 36, CHANNELS)
    return classifier.load(path, CHW), maps


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_load_writes_a_norm_as_one_operator_with_its_values(tmp_path: Path, spelling: str) -> None:
    model, maps = load(tmp_path / "m.onnx", SPELLINGS[spelling])
    assert [kind for kind in operators(model) if kind in ("LayerNormalization", "Sub", "Sqrt", "Pow")] == [
        "LayerNormalization"
    ]
    found = next(each for each in model.graph.node if each.op_type == "LayerNormalization")
    assert next(each.f for each in found.attribute if each.name == "epsilon") == pytest.approx(EPSILON)
    wide = maps.astype(np.float64)
    normal = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + EPSILON)
    if "scale" not in spelling:
        normal = normal * CONSTANTS["s"] + CONSTANTS["b"]
    expected = (normal @ CONSTANTS["fc"]).mean(1)
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", OTHERS)
def test_load_leaves_another_norm_as_it_is(tmp_path: Path, kind: str) -> None:
    model, maps = load(tmp_path / "m.onnx", OTHERS[kind])
    wide = maps.astype(np.float64)
    root = np.sqrt(wide.var(2, keepdims=True) + EPSILON)
    middle = wide.mean(2, keepdims=True)
    compute: dict[str, Callable[[], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = {
        "of the root mean square": lambda: wide / np.sqrt((wide**2).mean(2, keepdims=True) + EPSILON) * CONSTANTS["s"],
        "epsilon beside the root": lambda: (wide - middle) / (wide.std(2, keepdims=True) + EPSILON),
        "another mean": lambda: (wide - 2 * middle) / root,
        "of values with a limit": lambda: (wide - middle) / root,  # none of these values is beyond
        "a scale for each position": lambda: (wide - middle) / root * np.linspace(1, 2, 36)[:, None],
    }
    found = classifier.run(model, IMAGES)
    np.testing.assert_allclose(found, (compute[kind]() @ CONSTANTS["fc"]).mean(1), rtol=1e-4, atol=1e-4)
    # The first is a norm of limited values, the other a norm and a product.
    kept = {"of values with a limit": "Clip", "a scale for each position": "Mul"}
    assert ("LayerNormalization" in operators(model)) is (kind in kept)
    assert kind not in kept or kept[kind] in operators(model)
