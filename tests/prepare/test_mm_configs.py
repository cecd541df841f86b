"""mm_configs.py: what an OpenMMLab config says, beside OpenCV's own resize and arithmetic."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.build_file import load_build_file
from pipeline.data import preprocess
from pipeline.models.recipe import Recipe
from pipeline.prepare.mm_configs import read_mm_config
from pipeline.prepare.records import read_records

# As mmpretrain 1 dumps resnet18_8xb32_in1k.py beside the checkpoints, and as mmcls 0.x did.
NEW = """
auto_scale_lr = dict(base_batch_size=256)
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], num_classes=5, std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(backbone=dict(depth=18, type='ResNet'), type='ImageClassifier')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(edge='short', scale=64, type='ResizeEdge'),
    dict(crop_size=56, type='CenterCrop'),
    dict(type='PackInputs'),
]
"""
OLD = """
_base_ = ['../_base_/models/resnet18.py']
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', size=(64, -1), backend='pillow'),
    dict(type='CenterCrop', crop_size=56),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Collect', keys=['img'])
]
"""


def read(tmp_path: Path, text: str) -> Recipe | None:
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    return read_mm_config(tmp_path / "epoch_1.pth")


def test_config_of_mmpretrain_is_read_to_opencvs_own_pixels(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="resizes as mmcv does")
    recipe = read(tmp_path, NEW)
    assert recipe is not None
    build_file = tmp_path / "x.yaml"
    ops = recipe.process_ops()
    build_file.write_text(
        "name: x\nfrontend: {type: onnx, checkpoint: x.onnx, shape: {input: [1, 3, 56, 56]}}\n"
        f"dataset: {{path: images, process_ops: {ops!r}}}\n".replace("'", '"'),
        encoding="utf-8",
    )
    spec = load_build_file(build_file).preprocess
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    resized = cv2.resize(image, (int(64 * 131 / 97), 64), interpolation=cv2.INTER_LINEAR)
    top, left = round((64 - 56) / 2), round((resized.shape[1] - 56) / 2)
    cropped = resized[top : top + 56, left : left + 56].astype(np.float32)
    expected = (cropped - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    found = preprocess.apply(spec, preprocess.decode(tmp_path / "a.png"))
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=2e-5)


def test_config_of_mmcls_is_read(tmp_path: Path) -> None:
    recipe = read(tmp_path, OLD)
    assert recipe is not None
    assert (recipe.resize, recipe.crop_hw, recipe.interpolation, recipe.bgr) == (64, (56, 56), "BILINEAR_PILLOW", True)
    assert recipe.mean == pytest.approx((0.406, 0.456, 0.485))
    assert recipe.std == pytest.approx((0.225, 0.224, 0.229))
    assert read_records(tmp_path / "epoch_1.pth", None).recipe == recipe


def test_preprocessor_within_the_model_is_read(tmp_path: Path) -> None:
    within = NEW.replace("data_preprocessor = dict(", "other = dict(").replace(
        "model = dict(", "model = dict(data_preprocessor=dict(mean=[127.5] * 3, std=[1, 2, 4], to_rgb=True), "
    )
    assert read(tmp_path, within) is None  # a product is computed, and nothing is run
    plain = within.replace("[127.5] * 3", "[127.5, 127.5, 127.5]")
    recipe = read(tmp_path, plain)
    assert recipe is not None
    assert recipe.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "import os\nprint('a training script')\n",
        "x = (",
        NEW.replace("dict(edge='short', scale=64, type='ResizeEdge')", "dict(scale=(64, 64), type='Resize')"),
        NEW.replace("CenterCrop", "RandomCrop"),
        NEW.replace("scale=64", "scale=48"),
        NEW.replace("scale=64", "scale=64, interpolation='lanczos'"),
        NEW.replace("scale=64", "scale=64, interpolation=['bilinear']"),
        NEW.replace("mean=[123.675, 116.28, 103.53]", "mean=[123.675]"),
        NEW.replace("123.675", "1" + 400 * "0"),
        NEW.replace("123.675", "1e999"),
        NEW.replace("58.395", "0.0"),
        NEW.replace("to_rgb=True", "to_rgb=IS_RGB"),
        NEW.replace(", to_rgb=True", "") + "_base_ = ['../_base_/datasets/imagenet_bs32.py']",
        NEW + "#" * (1 << 18),
        NEW + "test_pipeline[1].update(scale=72)",
        NEW + "test_pipeline[1]['scale'] = 72",
        NEW + "if True:\n    data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1])",
    ],
)
def test_what_cannot_be_said_is_left_alone(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) is None


def test_two_configs_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(NEW, encoding="utf-8")
    assert read(tmp_path, NEW) is None


@pytest.mark.parametrize(("text", "bgr"), [(NEW.replace(", to_rgb=True", ""), True), (OLD, False)])
def test_order_of_channels_is_the_usual_one_of_each_library_when_it_is_not_said(
    tmp_path: Path, text: str, bgr: bool
) -> None:
    """ClsDataPreprocessor of mmpretrain has to_rgb=False, Normalize of mmcls to_rgb=True."""
    without = "\n".join(line for line in text.replace(", to_rgb=False", "").splitlines() if "_base_" not in line)
    recipe = read(tmp_path, without)
    assert recipe is not None
    assert recipe.bgr is bgr


def test_a_script_beside_the_checkpoint_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "script.py").write_text("pattern = '\\d'\nassert (1, 'x')\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert read(tmp_path, NEW) is not None
    assert not list(recwarn)


def test_a_folder_named_as_a_config_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other.py").mkdir()
    assert read(tmp_path, NEW) is not None
