"""Padding by auto_pad beside gaps in a window, which ONNX Runtime takes otherwise than ONNX says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_fixtures import CHW, IMAGES, WEIGHT, flat, node, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier


def by_the_standard(path: Path) -> npt.NDArray[np.float32]:
    evaluator = ReferenceEvaluator(onnx.load(path))
    return np.asarray(next(iter(evaluator.run(None, {"x": IMAGES}))))


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("strides", "dilations"), [([1, 1], [2, 2]), ([2, 1], [3, 2]), ([2, 2], [1, 2])])
def test_load_pads_a_convolution_with_gaps_as_onnx_says(
    tmp_path: Path, rule: str, strides: list[int], dilations: list[int]
) -> None:
    convolution = node("Conv", "x w", "a", auto_pad=rule, strides=strides, dilations=dilations)
    path = save(tmp_path / "m.onnx", flat(convolution), constants={"w": WEIGHT})
    expected = by_the_standard(path)
    np.testing.assert_allclose(classifier.run(classifier.load(path, CHW), IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "opset"), [("MaxPool", 17), ("AveragePool", 19), ("LpPool", 18)])
def test_load_refuses_a_pool_with_gaps_whose_padding_runtimes_do_not_agree_about(
    tmp_path: Path, kind: str, opset: int
) -> None:
    made = node(kind, "x", "a", kernel_shape=[3, 3], auto_pad="SAME_UPPER", dilations=[2, 2])
    path = save(tmp_path / "m.onnx", flat(made), opset)
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: node '{kind}_a' ({kind}) has gaps in its window (dilations) and auto_pad, which runtimes compute "
        "differently; export it with its padding in numbers (pads)"
    )


def test_load_takes_a_pool_without_gaps_whose_padding_is_automatic(tmp_path: Path) -> None:
    made = node("MaxPool", "x", "a", kernel_shape=[3, 3], auto_pad="SAME_UPPER", dilations=[1, 1])
    path = save(tmp_path / "m.onnx", flat(made))
    expected = by_the_standard(path)
    np.testing.assert_allclose(classifier.run(classifier.load(path, CHW), IMAGES), expected)
