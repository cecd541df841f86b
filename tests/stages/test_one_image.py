"""A network whose batch of 1 cannot be freed, from the file to requests of several images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.data import preprocess
from pipeline.onnx_models import classifier
from pipeline.packages.formats import Format, TritonBackend, Wanted, write
from pipeline.packages.package import open_package
from pipeline.runtimes.opening import installed_runtimes, open_backend, place
from pipeline.runtimes.profile import profile

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def one_image(tiny_model: onnx.ModelProto, tmp_path: Path) -> Path:
    """TinyResNet on images less their own mean, which is that over the batch too."""
    model = onnx.ModelProto()
    model.CopyFrom(tiny_model)
    given = model.graph.input[0]
    for node in model.graph.node:
        node.input[:] = ["centred" if name == given.name else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("ReduceMean", [given.name], ["all"], "mean", keepdims=1))
    model.graph.node.insert(1, helper.make_node("Sub", [given.name, "all"], ["centred"], "centre"))
    given.type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "one.onnx")
    return tmp_path / "one.onnx"


@pytest.mark.slow
def test_package_of_one_image_answers_requests_of_several(
    make_config: MakeConfig, one_image: Path, tmp_path: Path, image_tree: Path, batch_nchw: npt.NDArray[np.float32]
) -> None:
    said: list[str] = []
    package = open_package(build(make_config(f"frontend.checkpoint={one_image}"), said.append).prefix)
    assert any(line.startswith(f"note: {one_image}: its batch of 1 cannot be freed") for line in said)
    assert package.batch == 1
    float32 = package.workspace_file("float32_model")
    assert float32 is not None
    expected = classifier.run(onnx.load(float32), batch_nchw)
    alone = [classifier.run(onnx.load(one_image), image[None]) for image in batch_nchw]
    np.testing.assert_allclose(expected, np.concatenate(alone), atol=1e-4)
    images = np.stack(
        [
            preprocess.load(package.preprocess(), path, raw=package.takes_pixels)
            for path in sorted(image_tree.rglob("*.JPEG"))[:5]
        ]
    )
    for runtime in installed_runtimes():
        with open_backend(runtime, package.model, batch=5, placement=place(2, 2)) as backend:
            together = backend.infer(images)
            singly = np.concatenate([backend.infer(image[None]) for image in images])
            np.testing.assert_allclose(together, singly, atol=1e-6)
            assert classifier.relative_error(expected[:5], together) < 0.1
        times = profile(runtime, package.model, images, threads=1, runs=1)
        assert sum(time.seconds for time in times) > 0


@pytest.mark.slow
def test_triton_of_a_package_of_one_image_has_no_batching(
    make_config: MakeConfig, one_image: Path, tmp_path: Path
) -> None:
    package = open_package(build(make_config(f"frontend.checkpoint={one_image}"), lambda line: None).prefix)
    wanted = Wanted(Format.TRITON, tmp_path / "out", batch=8, instances=1, threads=1, backend=TritonBackend.ONNXRUNTIME)
    write(package, wanted)
    (config,) = (tmp_path / "out").rglob("config.pbtxt")
    text = config.read_text(encoding="utf-8")
    assert "max_batch_size: 0" in text
    assert "dims: [1, 3, 32, 32]" in text
    assert "dynamic_batching" not in text
