from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from pipeline.config.build_file import BuildConfig
from pipeline.runtimes.base import installed_runtimes
from pipeline.stages import calibset, convert, export

MakeConfig = Callable[..., BuildConfig]
CLASSES = "classes.tsv"


def run(cfg: BuildConfig, out: Path, *, images: bool = True) -> dict[str, Path]:
    """Run the stages up to this one; return the folder of each."""
    folders: dict[str, Path] = {}
    stages = {"calibset": calibset.run, "export": export.run, "convert": convert.run}
    for name, stage in stages.items():
        if name == "calibset" and not images:
            continue
        (out / name).mkdir(parents=True)
        stage(cfg, folders, out / name)
        folders[name] = out / name
    return folders


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(("images", "checked_on"), [(True, 20), (False, 8)])
def test_run_checks_the_model_on_what_images_there_are(
    make_config: MakeConfig, tmp_path: Path, dtype: str, images: bool, checked_on: int
) -> None:
    folders = run(make_config(f"backend.dtype={dtype}"), tmp_path / "stages", images=images)
    check = json.loads((folders["convert"] / "check.json").read_text(encoding="utf-8"))
    assert set(check) == {"agreement"}
    assert set(check["agreement"]) == {runtime.value for runtime in installed_runtimes()}
    assert all(counts["images"] == checked_on for counts in check["agreement"].values())
    assert (folders["export"] / CLASSES).is_file() is not images


def test_run_leaves_a_float32_model_as_it_was_exported(make_config: MakeConfig, tmp_path: Path) -> None:
    folders = run(make_config("backend.dtype=fp32"), tmp_path / "stages")
    assert onnx.load(folders["convert"] / "model.onnx") == onnx.load(folders["export"] / "model.onnx")


def test_run_halves_the_weights_of_a_float16_model(make_config: MakeConfig, tmp_path: Path) -> None:
    folders = run(make_config("backend.dtype=fp16"), tmp_path / "stages")
    weights = onnx.load(folders["convert"] / "model.onnx").graph.initializer
    assert not [weight.name for weight in weights if weight.data_type == TensorProto.FLOAT]


def test_identity_changes_with_precision_and_preprocessing_only(make_config: MakeConfig) -> None:
    base = convert.identity(make_config("backend.dtype=fp16"))
    assert convert.identity(make_config("backend.dtype=fp16", "name=other", "dataset.sampler.seed=3")) == base
    assert convert.identity(make_config("backend.dtype=fp32")) != base
    assert convert.identity(make_config("backend.dtype=fp16", "dataset.process_ops.1.size=40")) != base
