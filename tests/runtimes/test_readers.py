"""readers.py: activations in bfloat16 beside those in float32, and when float32 is taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from pipeline.quant import placement
from pipeline.runtimes import readers
from pipeline.runtimes.activations import ActivationReader, Arithmetic
from pipeline.runtimes.base import Placement
from pipeline.runtimes.readers import as_float32, computes_bfloat16, open_reader, preferred

Float32 = npt.NDArray[np.float32]
in_bfloat16 = pytest.mark.skipif(not computes_bfloat16(), reason="this CPU does not compute in bfloat16")


@pytest.fixture
def path(tiny_model: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(tiny_model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@in_bfloat16
def test_open_reader_reads_in_bfloat16_what_float32_gives(path: Path, batch_nchw: Float32) -> None:
    """From threads at once, image after image; tensors with channels come as [1, H, W, C]."""
    model = onnx.load(path)
    names = [*placement.observed_tensors(model), model.graph.output[0].name]
    exact = ActivationReader(path, names, threads=1)
    reader = open_reader(path, names, Placement(2, 2), batch_nchw[0], None)
    assert reader.arithmetic is Arithmetic.BFLOAT16

    def read(image: Float32) -> dict[str, Float32]:
        return {name: as_float32(tensor).copy() for name, tensor in reader.read(image).items()}

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(read, batch_nchw))
    reader.close()
    for image, tensors in zip(batch_nchw, found, strict=True):
        expected = exact.read(image)
        assert set(tensors) == {*names, "input"}
        np.testing.assert_array_equal(tensors["input"], image[None])
        for name in names:
            assert np.linalg.norm(tensors[name] - expected[name]) <= 0.05 * np.linalg.norm(expected[name]), name


@in_bfloat16
def test_open_reader_reads_in_float32_when_bfloat16_differs(
    path: Path, batch_nchw: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_LARGEST_SHARE", 1e-6)
    reader = open_reader(path, ["output"], Placement(1, 1), batch_nchw[0], None)
    assert reader.arithmetic is Arithmetic.FLOAT32
    assert reader.read(batch_nchw[0])["output"].dtype == np.float32


@in_bfloat16
def test_open_reader_reads_in_float32_when_openvino_lacks_a_tensor(path: Path, batch_nchw: Float32) -> None:
    """ONNX Runtime refuses it too, with its own words."""
    with pytest.raises(Exception, match="nowhere"):
        open_reader(path, ["nowhere"], Placement(1, 1), batch_nchw[0], None)


@pytest.mark.parametrize(
    ("allowed", "images", "found", "wanted"),
    [
        (True, 1000, None, None),
        (True, 1000, Arithmetic.BFLOAT16, Arithmetic.BFLOAT16),
        (True, 1000, Arithmetic.FLOAT32, Arithmetic.FLOAT32),
        (True, 20, Arithmetic.BFLOAT16, Arithmetic.FLOAT32),
        (False, 1000, None, Arithmetic.FLOAT32),
    ],
)
def test_preferred_is_float32_where_bfloat16_is_not_allowed_or_not_worth_it(
    allowed: bool, images: int, found: Arithmetic | None, wanted: Arithmetic | None
) -> None:
    assert preferred(allowed, images, found) is wanted
