from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from run_fixtures import SPEC

from pipeline import agreement
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data.imagenet import list_dataset
from pipeline.errors import DataError
from pipeline.runtimes.base import Runtime, installed_runtimes

CHECK = {"what": "fp16", "advice": "do this"}


def test_prepare_gives_the_first_images_in_batches(
    image_tree: Path, spec: PreprocessSpec, batch_nchw: npt.NDArray[np.float32]
) -> None:
    batches = agreement.prepare(list_dataset(image_tree).samples, spec)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    np.testing.assert_array_equal(np.concatenate(batches), batch_nchw)


def test_noise_is_the_same_every_time_and_has_the_size_of_the_input() -> None:
    (batch,) = agreement.noise(SPEC)
    assert batch.shape == (8, 3, 32, 32)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, agreement.noise(SPEC)[0])


def test_check_counts_equal_answers_in_every_runtime(tiny_onnx: Path, batch_nchw: npt.NDArray[np.float32]) -> None:
    batches = [batch_nchw[:8], batch_nchw[8:10]]
    expected = agreement.infer(Runtime.ONNXRUNTIME, tiny_onnx, batches)
    wrong = expected.copy()
    wrong[:3] *= -1
    found = agreement.check(tiny_onnx, batches, wrong, **CHECK)
    assert set(found) == {runtime.value for runtime in installed_runtimes()}
    assert all(counts == {"images": 10, "agreeing": 7} for counts in found.values())


@pytest.mark.parametrize("right", [0, 4])
def test_check_refuses_a_model_that_mostly_answers_otherwise(
    tiny_onnx: Path, batch_nchw: npt.NDArray[np.float32], right: int
) -> None:
    expected = -agreement.infer(Runtime.ONNXRUNTIME, tiny_onnx, [batch_nchw[:8], batch_nchw[8:10]])
    expected[:right] *= -1
    with pytest.raises(DataError) as caught:
        agreement.check(tiny_onnx, [batch_nchw[:8], batch_nchw[8:10]], expected, **CHECK)
    first = installed_runtimes()[0].value
    assert str(caught.value) == (
        f"the fp16 model collapsed: in {first} it gives the answer of float32 on {right} of 10 calibration images; "
        "do this"
    )
