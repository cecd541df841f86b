"""einsums.py: an Einsum that is one matrix product becomes it, to the same values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import SIDE, Builder, images, kinds_of, run_exact

from pipeline.onnx_models import einsums

TOKENS, HEADS, WIDTH = 6, 2, 4  # 8 channels
SIZES = {"b": 0, "i": SIDE**2, "j": SIDE**2, "h": HEADS, "d": WIDTH, "c": 8, "n": TOKENS, "k": 5}
PROJECTIONS = ["bic,ck->bik", "bic,kc->bik", "bic,chd->bihd", "chd,bic->bhid", "bic,chd->hbid", "b i c , k c -> b k i"]
PRODUCTS = ["bihd,bjhd->bhij", "bihd,bjhd->bijh", "bhid,bhjd->bhij", "bihd,bhdj->bhij"]
OTHERS = ["bic,bic->bic", "bic,bjc->bi", "bic->bci", "bic,c->bi", "...ic,ck->...ik", "bihd,bjhd->bij"]


def tokens(made: Builder, letters: str) -> str:
    """Return channels of a map at each place, [N, places, 8], or with the axes of the letters."""
    x = made.op("Reshape", made.conv("x", 3, 8), made.constant([0, 8, -1], np.int64))
    x = made.op("Transpose", x, perm=[0, 2, 1])
    if len(letters) < 4:
        return x
    x = made.op("Reshape", x, made.constant([0, SIDE**2, HEADS, WIDTH], np.int64))
    standard = "bihd" if "i" in letters else "bjhd"
    return x if letters == standard else made.op("Transpose", x, perm=[standard.index(each) for each in letters])


def network(equation: str, seed: int = 0) -> onnx.ModelProto:
    made = Builder(seed)
    given = equation.replace(" ", "").replace("...", "b").partition("->")[0].split(",")
    inputs = [
        tokens(made, each) if "b" in each else made.constant(made.normal(*(SIZES[letter] for letter in each)))
        for each in given
    ]
    x = made.op("Einsum", *inputs, equation=equation)
    return made.model(made.op("Reshape", x, made.constant([-1, 1, 1, 1], np.int64)), classes=None)


@pytest.mark.parametrize("equation", [*PROJECTIONS, *PRODUCTS])
def test_use_products_gives_the_same_values(equation: str) -> None:
    model = network(equation)
    expected = run_exact(model, images(3))
    assert einsums.use_products(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert (len(kinds_of(model, "Einsum")), len(kinds_of(model, "MatMul"))) == (0, 1)
    np.testing.assert_allclose(run_exact(model, images(3)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("equation", OTHERS)
def test_use_products_leaves_what_is_no_product(equation: str) -> None:
    model = network(equation)
    before = model.SerializeToString(deterministic=True)
    assert einsums.use_products(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_use_products_writes_heads_that_are_put_together() -> None:
    made = Builder()
    x = made.op("Einsum", tokens(made, "bihd"), made.constant(made.normal(HEADS, WIDTH, 8)), equation="bihd,hdc->bic")
    model = made.model(made.gemm(made.op("ReduceMean", x, axes=[1], keepdims=0), 8, 5))
    expected = run_exact(model, images())
    assert einsums.use_products(model) == 1
    np.testing.assert_allclose(run_exact(model, images()), expected, rtol=1e-4, atol=1e-4)
