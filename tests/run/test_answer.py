"""answer.py: what bench, eval, predict and serve have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from run_fixtures import SPEC, TinyWorkspace, plain_answers

from pipeline.data import npz
from pipeline.errors import BackendError, DataError
from pipeline.onnx_models.scores import Scores
from pipeline.run.answer import answer, check_finite, make_predictions, rank_classes
from pipeline.runtimes.base import Runtime, TensorSpec
from pipeline.runtimes.opening import open_backend, place


def sort_classes(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda index: (-row[index], index))


@pytest.mark.parametrize("count", [1, 5, 8, 9, 30, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rank_classes_equals_a_stable_sort_when_scores_are_equal(count: int, dtype: type[np.floating[Any]]) -> None:
    scores: np.ndarray = np.random.default_rng(count).integers(0, 6, (50, 40)).astype(dtype)
    kept = scores.copy()
    wanted = [sort_classes(row)[:count] for row in scores.tolist()]
    assert rank_classes(scores, count).tolist() == wanted
    np.testing.assert_array_equal(scores, kept)


def test_make_predictions_gives_the_softmax_of_logits_with_labels() -> None:
    outputs = np.log(np.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]], np.float32))
    first, second = make_predictions(["a", "b"], outputs, Scores.LOGITS, ["x", "y", "z"], topk=2)
    assert (first.source, first.class_ids, first.labels) == ("a", (1, 2), ("y", "z"))
    assert first.scores == pytest.approx((0.6, 0.3))
    assert (second.class_ids, second.labels) == ((0, 1), ("x", "y"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_check_finite_names_the_first_image_when_an_output_is_not_finite(value: float) -> None:
    outputs = np.zeros((3, 4), np.float32)
    check_finite(outputs, ["a", "b", "c"])
    outputs[1:, 2] = value
    with pytest.raises(BackendError) as raised:
        check_finite(outputs, ["a", "b", "c"])
    assert str(raised.value) == "b: the model's output holds NaN or Inf"


def test_answer_equals_a_plain_loop_and_leaves_out_what_is_skipped(tiny: TinyWorkspace) -> None:
    images = tiny.images[:5]
    images[2].write_bytes(b"no npz")
    named = [(f"number {index}", path) for index, path in enumerate(images)]
    skipped: list[tuple[str, str]] = []
    opened = open_backend(Runtime.ONNXRUNTIME, tiny.package.model, batch=5, placement=place(1, 1))
    with opened as backend:
        with pytest.raises(DataError, match=rf"^number 2: {images[2]}: not a readable npz file"):
            answer(backend, SPEC, named, npz.read_image_npz)
        found = answer(backend, SPEC, named, npz.read_image_npz, lambda name, why: skipped.append((name, str(why))))
        assert answer(backend, SPEC, named[2:3], npz.read_image_npz, lambda *_: None) is None
    assert found is not None
    assert found.names == ["number 0", "number 1", "number 3", "number 4"]
    good = [images[index] for index in (0, 1, 3, 4)]
    np.testing.assert_allclose(found.outputs, plain_answers(tiny.package, good), atol=1e-6)
    assert [name for name, _ in skipped] == ["number 2"]
    assert min(found.read, found.preprocess, found.infer) > 0


def test_tensor_spec_takes_pixels_when_it_is_uint8() -> None:
    assert TensorSpec("x", "uint8", (None, 3, 8, 8)).takes_pixels
    assert not TensorSpec("x", "float32", (None, 3, 8, 8)).takes_pixels
