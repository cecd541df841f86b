"""What the export stage writes of how the float32 model answers beside what it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline import building
from pipeline.config.build_config import BuildConfig
from pipeline.errors import ConfigError, DataError
from pipeline.onnx_models import classifier
from pipeline.prepare import frontends
from pipeline.stages import calibset, export
from pipeline.stages.artefact_names import GIVEN, MODEL

MakeConfig = Callable[..., BuildConfig]
KEYS = {"source", "images", "same_answers", "sqnr_db", "largest_difference", "largest_output", "verdict", "cause"}


def run(cfg: BuildConfig, out: Path, *, images: bool = True) -> Path:
    folders: dict[str, Path] = {}
    stages: dict[str, Any] = {"calibset": calibset, "export": export}
    for name, stage in stages.items():
        if name == "export" or images:
            (out / name).mkdir(parents=True)
            stage.run(stage.take_settings(cfg), folders, out / name)
            folders[name] = out / name
    return folders["export"]


@pytest.mark.parametrize("images", [True, False])
def test_run_compares_a_file_with_its_model(make_config: MakeConfig, tmp_path: Path, images: bool) -> None:
    folder = run(make_config("backend.dtype=fp32"), tmp_path / "stages", images=images)
    given = json.loads((folder / GIVEN).read_text(encoding="utf-8"))
    assert set(given) == KEYS
    assert (given["source"], given["images"], given["same_answers"]) == ("file", 8, 8)
    assert (given["verdict"], given["cause"]) == ("good", None)
    assert given["largest_difference"] < 1e-5 * given["largest_output"]


@pytest.mark.slow
def test_run_compares_a_network_with_its_model(make_config: MakeConfig, tmp_path: Path) -> None:
    cfg = make_config("frontend.type=torchvision", "frontend.model=resnet18", "frontend.checkpoint=null")
    given = json.loads((run(cfg, tmp_path / "stages") / GIVEN).read_text(encoding="utf-8"))
    assert set(given) == KEYS
    assert (given["source"], given["images"], given["verdict"]) == ("torch", 8, "good")


def with_more_classes(source: Path, target: Path) -> None:
    """Give the classifier one more class before the others, of a bias that always wins."""
    model = onnx.load(source)
    graph = model.graph
    gemm = next(node for node in graph.node if node.op_type == "Gemm")
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, first in ((gemm.input[1], np.zeros((1, 16), np.float32)), (gemm.input[2], np.array([99], np.float32))):
        kept = next(tensor for tensor in graph.initializer if tensor.name == name)
        kept.CopyFrom(numpy_helper.from_array(np.concatenate([first, arrays[name]]), name))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    graph.node.append(helper.make_node("Softmax", [gemm.output[0]], ["scores"], name="softmax", axis=1))
    graph.output[0].name = "scores"
    onnx.save(model, target)


def test_run_cuts_a_background_class_off_when_told_to(
    make_config: MakeConfig, tmp_path: Path, tiny_onnx: Path, batch_nchw: np.ndarray
) -> None:
    path = tmp_path / "background.onnx"
    with_more_classes(tiny_onnx, path)
    with pytest.raises(DataError) as caught:
        run(make_config(f"frontend.checkpoint={path}"), tmp_path / "refused")
    assert str(caught.value) == (
        f"{path}: has 5 classes, but the data set has 4; where one of them is a background class that no image shows "
        "(the first, in TensorFlow's networks), cut it off with --set frontend.background=first (or last)"
    )
    folder = run(make_config(f"frontend.checkpoint={path}", "frontend.background=first"), tmp_path / "stages")
    assert json.loads((folder / GIVEN).read_text(encoding="utf-8"))["verdict"] == "good"
    logits = classifier.run(onnx.load(tiny_onnx), batch_nchw)
    scores = classifier.run(onnx.load(folder / MODEL), batch_nchw)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(scores, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-5)


def test_run_says_that_lists_count_from_0_when_one_has_more_classes(make_config: MakeConfig, tmp_path: Path) -> None:
    """A list that counts from 1: its 4 classes need 5 indices."""
    images = make_config().dataset.path
    assert images is not None
    folders = sorted(folder for folder in images.iterdir() if folder.is_dir())
    lines = [
        f"{folder.name}/{file.name} {index}" for index, folder in enumerate(folders, 1) for file in folder.iterdir()
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    cfg = make_config(f"dataset.val_label={tmp_path / 'list.txt'}", "dataset.sampler.cover_classes=false")
    with pytest.raises(DataError) as caught:
        run(cfg, tmp_path / "stages")
    assert cfg.frontend.checkpoint is not None
    assert str(caught.value) == (
        f"{cfg.frontend.checkpoint}: has 4 classes, but the data set has 5; give images of the classes it was trained "
        "on alone, one folder per class or in a label list (lines 'name index') that counts from 0 to 3"
    )


def test_run_takes_the_output_that_is_named(make_config: MakeConfig, tmp_path: Path, tiny_onnx: Path) -> None:
    model = onnx.load(tiny_onnx)
    features = next(node for node in model.graph.node if node.op_type == "Gemm").input[0]
    model.graph.output.append(helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, ["N", 16]))
    path = tmp_path / "two.onnx"
    onnx.save(model, path)
    with pytest.raises(DataError, match=r"2 outputs .* --set frontend.output=output"):
        run(make_config(f"frontend.checkpoint={path}"), tmp_path / "refused")
    folder = run(make_config(f"frontend.checkpoint={path}", "frontend.output=output"), tmp_path / "stages")
    assert [value.name for value in onnx.load(folder / MODEL).graph.output] == ["output"]


@pytest.mark.parametrize("key", ["output=x", "background=first"])
def test_check_refuses_what_only_onnx_files_have(make_config: MakeConfig, key: str) -> None:
    cfg = make_config("frontend.type=timm", "frontend.model=resnet18", "frontend.checkpoint=null", f"frontend.{key}")
    with pytest.raises(
        ConfigError, match=f"^frontend.{key.partition('=')[0]}: is for ONNX files; a frontend of type timm"
    ):
        frontends.check(cfg.frontend)


def test_plan_refuses_an_opset_that_no_runtime_has_before_any_work(
    make_config: MakeConfig, tmp_path: Path, tiny_onnx: Path
) -> None:
    model = onnx.load(tiny_onnx)
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    path = tmp_path / "later.onnx"
    onnx.save(model, path)
    with pytest.raises(DataError, match="the latest known here is"):
        building.plan(make_config(f"frontend.checkpoint={path}"))


def test_load_takes_the_shape_of_channels_last(make_config: MakeConfig) -> None:
    assert make_config("frontend.shape={x: [1, 32, 32, 3]}").frontend.shape == (1, 3, 32, 32)


def test_run_asks_for_the_number_of_classes_when_images_have_no_labels(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(image_tree.rglob("*.JPEG"))):
        (flat / f"{number}.JPEG").write_bytes(file.read_bytes())
    cfg = make_config(f"dataset.path={flat}", "dataset.sampler.cover_classes=false")
    with pytest.raises(DataError) as caught:
        run(cfg, tmp_path / "stages")
    assert str(caught.value).endswith(
        "has 4 classes, but images without labels count as the 1000 of ImageNet; set frontend.num_classes=4"
    )
