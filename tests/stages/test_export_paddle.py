"""stages/export.py: PaddlePaddle inference models, before any work and, where Paddle is installed, to a package."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.building import build, check
from pipeline.config.build_config import BuildConfig
from pipeline.data import preprocess
from pipeline.errors import ConfigError
from pipeline.host.extras import install_command
from pipeline.packages.package import open_package
from pipeline.run.predict import Classifier

MakeConfig = Callable[..., BuildConfig]


def make_paddle_config(make_config: MakeConfig, checkpoint: Path) -> BuildConfig:
    return make_config(
        "frontend.type=paddle", f"frontend.checkpoint={checkpoint}", "frontend.shape={x: [1, 3, 32, 32]}"
    )


@pytest.mark.parametrize(
    ("name", "fault"), [("gone", "no such file or folder"), ("empty", "no inference.pdmodel or inference.json with")]
)
def test_check_names_what_is_missing_before_any_work(
    make_config: MakeConfig, tmp_path: Path, name: str, fault: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=fault):
        check(make_paddle_config(make_config, tmp_path / name))


@pytest.mark.skipif(importlib.util.find_spec("paddle2onnx") is not None, reason="paddle2onnx is installed")
def test_check_names_the_extra_when_paddle2onnx_is_missing(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "m_infer"
    folder.mkdir()
    for name in ("inference.pdmodel", "inference.pdiparams"):
        (folder / name).write_bytes(b"-")
    with pytest.raises(ConfigError, match=re.escape(install_command("paddle"))):
        check(make_paddle_config(make_config, folder))


@pytest.mark.slow
def test_package_of_an_inference_model_answers_as_paddle_does(
    make_config: MakeConfig, image_tree: Path, tmp_path: Path
) -> None:
    pytest.importorskip("paddle2onnx", reason="the extra `paddle` is not installed", exc_type=ImportError)
    paddle = pytest.importorskip("paddle")
    paddle.seed(0)
    layers = (paddle.nn.Conv2D(3, 16, 3, stride=2), paddle.nn.BatchNorm2D(16), paddle.nn.ReLU())
    head = (paddle.nn.AdaptiveAvgPool2D(1), paddle.nn.Flatten(), paddle.nn.Linear(16, 4), paddle.nn.Softmax())
    network = paddle.nn.Sequential(*layers, *head)
    network.eval()
    spec = paddle.static.InputSpec([None, 3, 32, 32], "float32", "x")
    paddle.jit.save(network, str(tmp_path / "m_infer" / "inference"), input_spec=[spec])
    cfg = make_paddle_config(make_config, tmp_path / "m_infer")
    package = open_package(build(cfg, lambda line: None).prefix)
    images = sorted(path for path in image_tree.rglob("*") if path.is_file())[:8]
    prepared = np.stack([preprocess.apply(cfg.preprocess, preprocess.decode(image)) for image in images])
    wanted = network(paddle.to_tensor(prepared)).numpy()
    with Classifier(package.prefix) as classifier:
        found = list(classifier.predict(images, topk=4))
    for row, prediction in zip(wanted, found, strict=True):
        np.testing.assert_allclose(prediction.scores, row[list(prediction.class_ids)], atol=0.02)
