from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from run_fixtures import SPEC

from pipeline import agreement
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data.calibration_list import FITTING_IMAGES, spread
from pipeline.data.imagenet import list_dataset
from pipeline.runtimes.base import Runtime

Float32 = npt.NDArray[np.float32]


def test_noise_is_the_same_every_time_and_has_the_size_of_the_input() -> None:
    (batch,) = agreement.noise(SPEC)
    assert batch.shape == (8, 3, 32, 32)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, agreement.noise(SPEC)[0])


def test_choose_takes_images_that_no_weight_was_fitted_to() -> None:
    chosen = agreement.choose(1000)
    assert len(chosen) == len(set(chosen)) == 64
    assert not set(chosen) & set(spread(1000, FITTING_IMAGES))
    assert max(chosen) - min(chosen) > 800  # over the whole list
    assert agreement.choose(20) == list(range(20))


def test_prepare_gives_images_in_batches(image_tree: Path, batch_nchw: Float32, spec: PreprocessSpec) -> None:
    batches = agreement.prepare(list_dataset(image_tree).samples, spec)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    np.testing.assert_array_equal(np.concatenate(batches), batch_nchw)


def hang(*_: object) -> None:
    time.sleep(100)


@pytest.mark.openvino
def test_run_in_ends_a_runtime_that_hangs(
    tiny_onnx: Path, batch_nchw: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "_LEAST_SECONDS", 1.0)
    monkeypatch.setattr(agreement, "_TIMES_EXACT", 0.0)
    monkeypatch.setattr(agreement, "_infer", hang)
    found = agreement.run_in(
        Runtime.OPENVINO, tiny_onnx, [batch_nchw[:8]], wide_weights=False, counts=False, exact_seconds=0.1
    )
    assert found.outputs is None
    assert found.reason == "did not end within 1 s"
