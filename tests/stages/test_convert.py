from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from pipeline.config.build_config import BuildConfig
from pipeline.stages import calibset, convert, export

MakeConfig = Callable[..., BuildConfig]
CLASSES = "classes.tsv"


def run(cfg: BuildConfig, out: Path, *, images: bool = True) -> dict[str, Path]:
    """Run the stages up to this one; return the folder of each."""
    folders: dict[str, Path] = {}
    stages: dict[str, Any] = {"calibset": calibset, "export": export, "convert": convert}
    for name, stage in stages.items():
        if name == "calibset" and not images:
            continue
        (out / name).mkdir(parents=True)
        stage.run(stage.take_settings(cfg), folders, out / name)
        folders[name] = out / name
    return folders


@pytest.mark.parametrize("images", [True, False])
def test_run_needs_no_images(make_config: MakeConfig, tmp_path: Path, images: bool) -> None:
    folders = run(make_config("backend.dtype=fp16"), tmp_path / "stages", images=images)
    assert [path.name for path in folders["convert"].iterdir()] == ["model.onnx"]
    assert (folders["export"] / CLASSES).is_file() is not images


def test_run_leaves_a_float32_model_as_it_was_exported(make_config: MakeConfig, tmp_path: Path) -> None:
    folders = run(make_config("backend.dtype=fp32"), tmp_path / "stages")
    assert onnx.load(folders["convert"] / "model.onnx") == onnx.load(folders["export"] / "model.onnx")


def test_run_halves_the_weights_of_a_float16_model(make_config: MakeConfig, tmp_path: Path) -> None:
    folders = run(make_config("backend.dtype=fp16"), tmp_path / "stages")
    weights = onnx.load(folders["convert"] / "model.onnx").graph.initializer
    assert not [weight.name for weight in weights if weight.data_type == TensorProto.FLOAT]
