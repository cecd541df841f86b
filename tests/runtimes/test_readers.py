"""readers.py: activations in bfloat16 beside those in float32, and when float32 is taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

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


def _swin_like(path: Path, *, beside_convolution: bool) -> Path:
    """Write a network whose product with a matrix reads [N, H, W, C], H and C equal, as Swin's and ConvNeXt's do."""
    random = np.random.default_rng(0)
    nodes = [
        oh.make_node("Conv", ["input", "kernel"], ["maps"]),
        oh.make_node("Transpose", ["maps"], ["rows"], perm=[0, 2, 3, 1]),
        oh.make_node("MatMul", ["maps" if beside_convolution else "rows", "matrix"], ["product"]),
        oh.make_node("Conv", ["maps", "second"], ["other"]),
        oh.make_node("GlobalAveragePool", ["other"], ["output"]),
    ]
    shapes = {"kernel": (16, 3, 1, 1), "matrix": (16, 8), "second": (4, 16, 1, 1)}
    weights = [numpy_helper.from_array(random.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    given = oh.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3, 16, 16])
    outputs = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("output", "product")]
    graph = oh.make_graph(nodes, "rows", [given], outputs, weights)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), path)
    return path


@in_bfloat16
def test_open_reader_keeps_the_order_of_what_a_matrix_product_reads(tmp_path: Path) -> None:
    """Its channels are last already, of four axes too; those of a convolution are moved there."""
    path = _swin_like(tmp_path / "swin.onnx", beside_convolution=False)
    image = np.random.default_rng(1).normal(size=(3, 16, 16)).astype(np.float32)
    reader = open_reader(path, ["rows", "maps"], Placement(1, 1), image, None)
    assert reader.arithmetic is Arithmetic.BFLOAT16
    exact, found = ActivationReader(path, ["rows"], threads=1).read(image)["rows"], reader.read(image)
    for name in ("rows", "maps"):
        assert np.linalg.norm(as_float32(found[name], moved=False) - exact) <= 0.02 * np.linalg.norm(exact), name
    reader.close()


@in_bfloat16
def test_open_reader_reads_in_float32_when_a_product_and_a_convolution_read_the_same(tmp_path: Path) -> None:
    path = _swin_like(tmp_path / "both.onnx", beside_convolution=True)
    image = np.random.default_rng(1).normal(size=(3, 16, 16)).astype(np.float32)
    assert open_reader(path, ["maps"], Placement(1, 1), image, None).arithmetic is Arithmetic.FLOAT32


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
