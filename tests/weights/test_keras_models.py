"""keras_models.py: what is refused without TensorFlow; the rest is converted where it is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.building import build
from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.errors import ConfigError, DataError
from pipeline.host.extras import install_command
from pipeline.onnx_models import classifier
from pipeline.packages.package import open_package
from pipeline.weights import keras_models

MakeConfig = Callable[..., BuildConfig]

HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(60)
HAS_EXTRA = all(importlib.util.find_spec(name) is not None for name in ("tf2onnx", "tensorflow"))


def layer(kind: str, **more: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": "one"}, **more}


def write_zip(path: Path, *layers: dict[str, Any], description: bool = True) -> Path:
    model = {"class_name": "Functional", "module": "keras.src.models.functional", "config": {"layers": list(layers)}}
    with zipfile.ZipFile(path, "w") as archive:
        if description:
            archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", HDF5)
    return path


def test_check_refuses_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "n.h5").write_bytes(HDF5)
    write_zip(tmp_path / "n.keras", description=False)
    for name in ("n.h5", "n.keras"):
        with pytest.raises(ConfigError, match=f"{name}: holds weights alone; build the network in Keras, load the"):
            keras_models.check(tmp_path / name)


def test_check_refuses_a_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "n.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": list(range(5000))}))
        archive.writestr("model.weights.h5", HDF5)
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"n\.keras: cannot be unpacked \(.*\); download it again"):
        keras_models.check(path)


def test_check_refuses_a_description_beyond_all_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_models, "_LARGEST", 10)
    with pytest.raises(ConfigError, match=r"n\.keras: its description of the layers has 0 MiB; wanted a Keras model"):
        keras_models.check(write_zip(tmp_path / "n.keras", layer("Dense")))


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (layer("Lambda", module="keras.layers"), "has layer 'one' of class Lambda, Python code that is not run here; "),
        (layer("Dense", activation={"class_name": "__lambda__", "config": {}}), "has an object of class __lambda__, "),
        (layer("TimeDistributed", inner=[layer("Lambda")]), "has layer 'one' of class Lambda, "),
        (layer("Mine", module="mine.layers"), "has layer 'one' of class Mine of mine.layers, whose code is not in the"),
    ],
)
def test_check_refuses_code_and_names_its_layer(tmp_path: Path, found: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        keras_models.check(write_zip(tmp_path / "n.keras", layer("Dense", module="keras.layers"), found))


def test_check_passes_over_what_is_of_training_alone(tmp_path: Path) -> None:
    trained = layer("Dense", module="keras.layers", compile_config={"loss": layer("MyLoss", module="mine.losses")})
    try:
        keras_models.check(write_zip(tmp_path / "n.keras", trained))
    except ConfigError as err:
        assert "converting it needs" in str(err)  # the extra, which is looked for last


def test_check_says_what_it_wants_when_a_file_is_another(tmp_path: Path) -> None:
    (tmp_path / "n.h5").write_text("Entry not found")
    with pytest.raises(ConfigError, match=r"n.h5: expected a whole Keras model, .keras or .h5"):
        keras_models.check(tmp_path / "n.h5")


def test_check_says_so_when_the_description_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "n.keras", "w") as archive:
        archive.writestr("config.json", "{")
        archive.writestr("model.weights.h5", HDF5)
    with pytest.raises(ConfigError, match="its description of the layers is damaged"):
        keras_models.check(tmp_path / "n.keras")


@pytest.mark.skipif(HAS_EXTRA, reason="the extra `keras` is installed")
def test_check_names_the_extra_when_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "n.h5").write_bytes(HDF5 + b"model_config")
    write_zip(tmp_path / "n.keras", layer("Dense", module="keras.layers"))
    for name in ("n.h5", "n.keras"):
        wanted = (
            rf"{name}: is a Keras model; converting it needs .*tensorflow; run: {re.escape(install_command('keras'))}"
        )
        with pytest.raises(ConfigError, match=wanted):
            keras_models.check(tmp_path / name)


def test_build_refuses_code_before_any_work(make_config: MakeConfig, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "n.keras", layer("Lambda"))
    with pytest.raises(ConfigError, match="Python code that is not run here"):
        build(make_config("frontend.type=keras", f"frontend.checkpoint={path}"), lambda line: None)
    assert not (tmp_path / "workspace").exists()


MAKE_NETWORK = """
import os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
import numpy as np

path, kind, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
keras.utils.set_random_seed(0)
side = None if kind == "open" else 32
x = image = keras.Input((side, side, 3))
if kind == "normalization":
    x = keras.layers.Normalization(mean=[120.0, 115.0, 100.0], variance=[3000.0, 2900.0, 3100.0])(x)
x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
x = keras.layers.BatchNormalization(momentum=0.5)(x)
x = keras.layers.ReLU(6.0)(x)
if kind == "lambda":
    x = keras.layers.Lambda(lambda value: value * 2)(x)
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(image, keras.layers.Dense(classes, activation="softmax")(x))
images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
images = images * 50 + 110 if kind == "normalization" else images
np.savez(path + ".npz", images=images.transpose(0, 3, 1, 2), answers=model(images, training=False))
model.save(path)
"""


def make_network(path: Path, kind: str = "plain", classes: int = 5) -> Any:
    """Save a network by Keras; return images and its own answers."""
    pytest.importorskip("tf2onnx", reason="the extra `keras` is not installed")
    pytest.importorskip("keras", reason="the extra `keras` is not installed")
    command = [sys.executable, "-c", MAKE_NETWORK, str(path), kind, str(classes)]
    subprocess.run(command, check=True, capture_output=True)
    return np.load(f"{path}.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("n.h5", "plain"), ("n.keras", "plain"), ("n.keras", "normalization"), ("n.h5", "open")]
)
def test_converted_model_answers_as_keras_does(tmp_path: Path, name: str, kind: str) -> None:
    made = make_network(tmp_path / name, kind)
    (tmp_path / name).rename(tmp_path / "model.bin")  # the content decides
    answers = keras_models.to_onnx(tmp_path / "model.bin", tmp_path / "n.onnx", (32, 32), made["images"])
    assert answers is not None
    np.testing.assert_allclose(answers, made["answers"], atol=1e-6)
    model = classifier.load(tmp_path / "n.onnx", (3, 32, 32))
    np.testing.assert_allclose(classifier.run(model, made["images"]), made["answers"], atol=1e-6)


@pytest.mark.slow
def test_files_of_keras_2_are_read(tmp_path: Path) -> None:
    """They give depthwise convolutions a key that Keras 3 has not."""
    made = make_network(tmp_path / "n.h5")
    import h5py

    with h5py.File(tmp_path / "n.h5", "r+") as file:
        old = file.attrs["model_config"].replace('"depth_multiplier":', '"groups": 1, "depth_multiplier":')
        assert '"groups": 1, "depth' in old
        file.attrs["model_config"] = old
    keras_models.to_onnx(tmp_path / "n.h5", tmp_path / "n.onnx")
    model = classifier.load(tmp_path / "n.onnx", (3, 32, 32))
    np.testing.assert_allclose(classifier.run(model, made["images"]), made["answers"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["n.h5", "n.keras"])
def test_code_in_a_real_file_is_refused(tmp_path: Path, name: str) -> None:
    make_network(tmp_path / name, "lambda")
    with pytest.raises(ConfigError, match="of class Lambda, Python code that is not run here"):
        keras_models.to_onnx(tmp_path / name, tmp_path / "n.onnx")


@pytest.mark.slow
def test_to_onnx_says_why_keras_cannot_load_a_file(tmp_path: Path) -> None:
    make_network(tmp_path / "n.keras")
    with zipfile.ZipFile(tmp_path / "n.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(b'"ReLU"', b'"RxLU"')
    with zipfile.ZipFile(tmp_path / "n.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"n.keras: Keras .* cannot load it \(.*RxLU"):
        keras_models.to_onnx(tmp_path / "n.keras", tmp_path / "n.onnx")


@pytest.mark.slow
def test_init_and_build_take_a_keras_model(
    make_config: MakeConfig, tmp_path: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classes = sum(path.is_dir() for path in image_tree.iterdir())
    made = make_network(tmp_path / "n.keras", "normalization", classes)
    assert main(["init", "x.yaml", "--weights", "n.keras", "--dataset", str(image_tree)]) == 0
    cfg = load_build_file("x.yaml")
    assert (cfg.frontend.type.value, cfg.frontend.chw) == ("keras", (3, 32, 32))
    np.testing.assert_allclose(cfg.preprocess.mean, 0)  # the network has mean and std itself
    package = open_package(build(cfg, lambda line: None).prefix)
    given = package.report()["proof"]["given"]
    assert (given["source"], given["verdict"], given["same_answers"]) == ("keras", "good", given["images"])
    float32 = package.workspace_file("float32_model")
    assert float32 is not None
    np.testing.assert_allclose(classifier.run(onnx.load(float32), made["images"]), made["answers"], atol=1e-6)
