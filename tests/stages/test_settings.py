"""What each stage takes of the build file: the key of its artefact changes with that, and with nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts import file_digest
from pipeline.config.build_config import BuildConfig
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.stages import settings as module
from pipeline.stages.settings import ImageTree, InputFile, settings_key, unkeyed
from pipeline.stages.table import STAGES, Stage

MakeConfig = Callable[..., BuildConfig]

INT8_GOAL = ("accuracy.min_agreement=90", "evaluation.num=8")
# Each key of a build file, and overrides that change it and no other key. Paths are filled in.
CHANGES: Mapping[str, tuple[str, ...]] = {
    "name": ("name=other",),
    "frontend.type": ("frontend.type=timm", "frontend.model=resnet18"),
    "frontend.model": ("frontend.model=resnet34",),
    "frontend.checkpoint": ("frontend.checkpoint={root}/changed.onnx",),
    "frontend.checkpoint_key": ("frontend.checkpoint_key=model_ema",),
    "frontend.dtype": ("frontend.dtype=fp16",),
    "frontend.num_classes": ("frontend.num_classes=4",),
    "frontend.output": ("frontend.output=output",),
    "frontend.background": ("frontend.background=last",),
    "frontend.shape name": ("frontend.shape={{other: [1, 3, 32, 32]}}",),
    "frontend.shape batch": ("frontend.shape={{input: [-1, 3, 32, 32]}}",),
    "frontend.shape size": ("frontend.shape={{input: [1, 3, 24, 24]}}", "dataset.process_ops.2.crop_size=24"),
    "graph.extra_ops.type": ("graph.extra_ops.type=softmax",),
    "backend.dtype": ("backend.dtype=fp16",),
    "backend.target": ("backend.target=vnni",),
    "backend.compile": ("backend.compile.cluster_mode=0",),
    "backend.quantize.calibrate_mode": ("backend.quantize.calibrate_mode=max",),
    "backend.quantize.percentile": ("backend.quantize.percentile=99",),
    "backend.quantize.quantize_per_channel": ("backend.quantize.quantize_per_channel=false",),
    "backend.quantize.pixel_input": ("backend.quantize.pixel_input=false",),
    "backend.quantize.equalization": ("backend.quantize.equalization=false",),
    "backend.quantize.weight_rounding": ("backend.quantize.weight_rounding=nearest",),
    "backend.quantize.float_classifier": ("backend.quantize.float_classifier=false",),
    "backend.quantize.bias_correction": ("backend.quantize.bias_correction=false",),
    "backend.quantize.skip_conv_layers": ("backend.quantize.skip_conv_layers=[0]",),
    "backend.quantize.exclude_layers": ("backend.quantize.exclude_layers=[0]",),
    "dataset.path": ("dataset.path={root}/others",),
    "dataset.val_label": ("dataset.val_label={root}/labels.txt",),
    "dataset.class_order": ("dataset.class_order=numeric",),
    "dataset.vdsp_params": ("dataset.vdsp_params={root}/other-vdsp_params.json",),
    "dataset.preprocess_as": ("dataset.preprocess_as=paddleclas",),
    "dataset.sampler.suffix": ("dataset.sampler.suffix=PNG",),
    "dataset.sampler.get_data_num": ("dataset.sampler.get_data_num=16",),
    "dataset.sampler.seed": ("dataset.sampler.seed=1",),
    "dataset.sampler.cover_classes": ("dataset.sampler.cover_classes=false",),
    "dataset.process_ops resize": ("dataset.process_ops.1.size=40",),
    "dataset.process_ops mean": ("dataset.process_ops.3.mean=[0.5,0.5,0.5]",),
    "dataset.skip_bad": ("dataset.skip_bad=true",),
    "evaluation.path": ("evaluation.path={root}/others",),
    "evaluation.val_label": ("evaluation.val_label={root}/labels.txt",),
    "evaluation.num": ("evaluation.num=4",),
    "accuracy.max_drop": ("accuracy.max_drop=1",),
    "accuracy.max_kl": ("accuracy.max_kl=0.01",),
    "accuracy.min_agreement": ("accuracy.min_agreement=95",),
    "accuracy.min_speed": ("accuracy.min_speed=0.5",),
    "accuracy.budget_minutes": ("accuracy.budget_minutes=1",),
    "workspace.path": ("workspace.path={root}/elsewhere",),
}
ONE_CHOICE = {"backend.type", "dataset.type"}  # keys with one value
_SPEC = {
    "dataset.process_ops resize",
    "dataset.process_ops mean",
    "dataset.vdsp_params",
    "frontend.shape size",
    "dataset.preprocess_as",
}
_EXCLUDED = {"backend.quantize.skip_conv_layers", "backend.quantize.exclude_layers"}
_PARTS = {
    *("backend.quantize.quantize_per_channel", "backend.quantize.bias_correction"),
    *("backend.quantize.float_classifier", "dataset.process_ops mean", *_EXCLUDED),
}
_GOAL = {
    "accuracy.max_drop",
    "accuracy.max_kl",
    "accuracy.min_agreement",
    "accuracy.min_speed",
    "accuracy.budget_minutes",
}
# What the settings of each stage are to change with. What reaches a stage through its inputs is none of it.
DEPENDS: Mapping[str, set[str]] = {
    "sample": set(),
    "calibset": {
        *("dataset.path", "dataset.val_label", "dataset.class_order", "frontend.num_classes", "backend.dtype"),
        "dataset.skip_bad",
        *(f"dataset.sampler.{key}" for key in ("suffix", "get_data_num", "seed", "cover_classes")),
    },
    "export": {
        *(f"frontend.{key}" for key in ("type", "model", "checkpoint", "checkpoint_key", "num_classes")),
        *("frontend.output", "frontend.background", "frontend.shape name", "graph.extra_ops.type", *_SPEC),
    },
    "pixels": {"dataset.process_ops mean"},
    "equalize": _SPEC,
    "arrange": {"backend.quantize.float_classifier"},
    "calibrate": _SPEC,
    "thresholds": {"backend.quantize.calibrate_mode", "backend.quantize.percentile"},
    "round": {"backend.quantize.quantize_per_channel", *_SPEC},
    "place": {*_PARTS, *_SPEC},
    "ranges": {*_PARTS, *_SPEC},
    "tune": {*_PARTS, *_GOAL, *_SPEC},
    "quantize": _PARTS,
    "prove": {"backend.dtype", "backend.quantize.percentile", "backend.quantize.quantize_per_channel", *_SPEC},
    "trial": set(),
    "image2npz": {
        *("evaluation.path", "evaluation.val_label", "evaluation.num", "frontend.num_classes"),
        *("dataset.sampler.suffix", "dataset.class_order", "dataset.skip_bad"),
        "dataset.preprocess_as",  # whether EXIF turns an image
    },
    "convert": {"backend.dtype"},
    "package": set(CHANGES),
}


@pytest.fixture
def vary(make_config: MakeConfig, tmp_path: Path, tiny_onnx: Path, image_tree: Path) -> Callable[..., BuildConfig]:
    """Return a function: a key of CHANGES, or None -> the build file, as it is or with that key changed."""
    (tmp_path / "changed.onnx").write_bytes(tiny_onnx.read_bytes() + b"\0")
    (tmp_path / "labels.txt").write_text("image 0\n", encoding="utf-8")
    shutil.copytree(image_tree, tmp_path / "others")
    spec = dataclasses.replace(make_config().preprocess, synthetic_hw=(50, 50))
    (tmp_path / "other-vdsp_params.json").write_text(json.dumps(to_vdsp_dict(spec)), encoding="utf-8")
    base = (*INT8_GOAL, f"evaluation.path={image_tree}", "frontend.model=resnet18")

    def make(key: str | None) -> BuildConfig:
        overrides = [override.format(root=tmp_path) for override in CHANGES[key]] if key else []
        return make_config(*base, *overrides)

    return make


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value and name != "shape":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def walk(value: object) -> Iterator[object]:
    """Yield a value and everything below it."""
    yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from walk(getattr(value, item.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from walk(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from walk(each)


def test_changes_cover_every_key_of_a_build_file(vary: Callable[..., BuildConfig]) -> None:
    known = {name.partition(" ")[0] for name in CHANGES} | ONE_CHOICE
    found = {name for name in leaves(vary(None).as_dict()) if not name.startswith("preprocess.")}
    assert found == known


def test_every_stage_is_held_to_keys() -> None:
    assert DEPENDS.keys() == {stage.name for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_settings_hold_no_build_file_and_cannot_be_changed(vary: Callable[..., BuildConfig], stage: Stage[Any]) -> None:
    settings = stage.settings(vary(None))
    assert dataclasses.is_dataclass(settings)
    assert dataclasses.fields(settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, dataclasses.fields(settings)[0].name, None)
    assert not [held for held in walk(settings) if isinstance(held, BuildConfig)]
    assert settings_key(settings) == settings_key(stage.settings(vary(None)))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_key_changes_with_what_a_stage_depends_on_and_with_nothing_else(
    vary: Callable[..., BuildConfig], stage: Stage[Any]
) -> None:
    base = settings_key(stage.settings(vary(None)))
    found = {key for key in CHANGES if settings_key(stage.settings(vary(key))) != base}
    assert found == DEPENDS[stage.name]


def test_key_of_the_calibration_images_changes_with_what_a_float_model_may_lack(make_config: MakeConfig) -> None:
    (calibset,) = (stage for stage in STAGES if stage.name == "calibset")
    off = "dataset.sampler.cover_classes=false"  # int8 refuses fewer images than asked for, float takes all there are
    keys = [settings_key(calibset.settings(make_config(off, f"backend.dtype={dtype}"))) for dtype in ("int8", "fp16")]
    assert keys[0] != keys[1]


def test_key_of_a_file_is_its_content_and_not_its_date_or_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "folder" / "b.txt"
    second.parent.mkdir()
    for path in (first, second):
        path.write_bytes(b"one")
    os.utime(second, (1, 1))
    assert settings_key(InputFile(first)) == settings_key(InputFile(second))
    part = InputFile(first, (second,))
    before = settings_key(part)
    assert before != settings_key(InputFile(first))
    second.write_bytes(b"two")
    assert settings_key(part) != before


def test_input_file_is_read_again_when_it_changed_or_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"first")
    read: list[Path] = []

    def counted(of: Path) -> str:
        read.append(of)
        return file_digest(of)

    monkeypatch.setattr(module, "file_digest", counted)
    before = settings_key(InputFile(path))
    assert settings_key(InputFile(path)) == before
    assert len(read) == 2  # it was written just now
    monkeypatch.setattr(module, "_RECENT_NS", 0)
    assert [settings_key(InputFile(path)) for _ in range(3)] == [before] * 3
    assert len(read) == 3
    path.write_bytes(b"other")  # as long
    os.utime(path, ns=(1, 1))
    assert settings_key(InputFile(path)) == [file_digest(path)]
    assert settings_key(InputFile(path)) != before


def test_key_of_images_changes_with_a_name_a_size_or_a_date(image_tree: Path) -> None:
    keys = [settings_key(ImageTree(image_tree))]
    image = next(image_tree.rglob("*_3.JPEG"))
    image.rename(image.with_name("renamed.JPEG"))
    keys.append(settings_key(ImageTree(image_tree)))
    os.utime(image.with_name("renamed.JPEG"), (1, 1))
    keys.append(settings_key(ImageTree(image_tree)))
    assert len({json.dumps(key) for key in keys}) == 3
    assert settings_key(ImageTree(image_tree)) == keys[-1]


@dataclasses.dataclass(frozen=True)
class Sketch:
    seen: int
    cores: int = unkeyed()


def test_settings_key_leaves_out_what_is_declared_so_and_nothing_else() -> None:
    assert settings_key(Sketch(1, 2)) == settings_key(Sketch(1, 3)) == {"seen": 1}
    assert settings_key(Sketch(2, 2)) == {"seen": 2}


@pytest.mark.parametrize("value", [Path("weights.pth"), b"bytes", object(), {1, 2}])
def test_settings_key_refuses_what_is_no_plain_data(value: object) -> None:
    with pytest.raises(TypeError, match=f"^{type(value).__name__} cannot enter the key of a stage$"):
        settings_key((value,))


def test_fields_outside_of_the_key_are_these(vary: Callable[..., BuildConfig]) -> None:
    """A new one is a decision: what it names must not change any result."""
    found = set()
    for stage in STAGES:
        settings = stage.settings(vary(None))
        fields = dataclasses.fields(settings)
        found |= {(stage.name, item.name) for item in fields if not item.metadata.get(module._IN_KEY, True)}
    assert found == {("calibset", "cores"), ("equalize", "cores"), ("calibrate", "cores"), ("round", "cores")}
