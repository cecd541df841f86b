"""paddle_inference.py: models found in folders and tars; converted where Paddle is installed."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.host.extras import install_command
from pipeline.onnx_models import classifier
from pipeline.weights import paddle_inference

PROGRAM = b'{"base_code":{"magic":"pir","version":4},"program":{}}'


def write_model(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(PROGRAM if name.endswith(".json") else b"parameters")
    return folder


def write_tar(path: Path, **files: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/").replace("_dot_", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_files_of_a_folder_are_the_newer_program_and_its_parameters(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "inference.json", "inference.pdmodel", "inference.pdiparams", "other.json")
    wanted = paddle_inference.InferenceModel(folder / "inference.json", folder / "inference.pdiparams")
    assert paddle_inference.files_of(folder) == wanted
    assert paddle_inference.files_of(folder / "inference.json") == wanted
    assert paddle_inference.files_of(folder / "inference.pdmodel").program == folder / "inference.pdmodel"


@pytest.mark.parametrize(
    ("names", "given", "fault"),
    [
        (("inference.pdmodel",), "", "no inference.pdmodel or inference.json with inference.pdiparams in this folder"),
        (("inference.pdmodel",), "inference.pdmodel", "its parameters, inference.pdiparams, are not beside it"),
        (("inference.pdiparams",), "inference.pdiparams", "expected a folder, a .tar, or inference.pdmodel"),
        ((), "gone.json", "no such file or folder"),
    ],
)
def test_check_names_what_is_missing(tmp_path: Path, names: tuple[str, ...], given: str, fault: str) -> None:
    folder = write_model(tmp_path / "m", *names)
    with pytest.raises(ConfigError, match=fault):
        paddle_inference.check(folder / given if given else folder)


def test_is_inference_model_goes_by_content_where_a_name_says_little(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "inference.json", "inference.pdiparams")
    (tmp_path / "config.json").write_text("{}")
    assert paddle_inference.is_inference_model(folder)
    assert paddle_inference.is_inference_model(folder / "inference.json")
    assert not paddle_inference.is_inference_model(tmp_path / "config.json")
    assert not paddle_inference.is_inference_model(tmp_path)


def test_unpacked_tar_holds_the_two_files_wherever_its_paths_lead(tmp_path: Path) -> None:
    files = {"..__..__m__inference_dot_pdmodel": b"program", "..__..__m__inference_dot_pdiparams": b"parameters"}
    path = write_tar(tmp_path / "m_infer.tar", readme_dot_md=b"-", **files)
    assert paddle_inference.is_inference_model(path)
    with paddle_inference.unpack(path) as model:
        assert (model.program.read_bytes(), model.parameters.read_bytes()) == (b"program", b"parameters")
        assert model.program.parent == model.parameters.parent
    assert not model.program.exists()


def test_unpacked_says_so_when_a_tar_is_damaged_or_holds_no_model(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "m.tar", a__inference_dot_pdmodel=b"program", a__inference_dot_pdiparams=bytes(4000))
    path.write_bytes(path.read_bytes()[:2500])
    with pytest.raises(DataError, match="cannot be unpacked"), paddle_inference.unpack(path):
        pass
    path.write_bytes(b"no tar")
    reason = r"unpacked \(file could not be opened .*\); download it again$"  # a dot is no end of a line
    with pytest.raises(DataError, match=reason), paddle_inference.unpack(path):
        pass
    other = write_tar(tmp_path / "other.tar", a__inference_dot_pdmodel=b"program", b__inference_dot_pdiparams=b"-")
    assert not paddle_inference.is_inference_model(other)
    with pytest.raises(ConfigError, match="in this tar"), paddle_inference.unpack(other):
        pass


@pytest.mark.skipif(importlib.util.find_spec("paddle2onnx") is not None, reason="paddle2onnx is installed")
def test_check_names_the_extra_when_paddle2onnx_is_missing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "inference.json", "inference.pdiparams")
    with pytest.raises(ConfigError, match=f"converting it needs paddle2onnx.*{re.escape(install_command('paddle'))}"):
        paddle_inference.check(folder)


MAKE_NETWORK = """
import sys
import numpy as np
import paddle

folder = sys.argv[1]
paddle.seed(0)
layers = (paddle.nn.Conv2D(3, 8, 3), paddle.nn.BatchNorm2D(8), paddle.nn.ReLU(), paddle.nn.AdaptiveAvgPool2D(1))
network = paddle.nn.Sequential(*layers, paddle.nn.Flatten(), paddle.nn.Linear(8, 5), paddle.nn.Softmax())
network.eval()
images = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
np.savez(folder + "/answers.npz", images=images, answers=network(paddle.to_tensor(images)).numpy())
spec = paddle.static.InputSpec([None, 3, 16, 16], "float32", "x")
paddle.jit.save(network, folder + "/inference", input_spec=[spec])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inference.pdmodel", "inference.json"])
def test_converted_model_answers_as_paddle_does(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("paddle2onnx", reason="the extra `paddle` is not installed", exc_type=ImportError)
    folder = tmp_path / "m"
    folder.mkdir()
    # Which of the two it writes is settled when Paddle is imported.
    environment = {**os.environ, "FLAGS_enable_pir_api": "1" if kind.endswith("json") else "0"}
    subprocess.run([sys.executable, "-c", MAKE_NETWORK, str(folder)], env=environment, check=True, capture_output=True)
    assert (folder / kind).is_file()
    paddle_inference.to_onnx(folder, tmp_path / "m.onnx")
    model = classifier.load(tmp_path / "m.onnx", (3, 16, 16))
    made = np.load(folder / "answers.npz")
    np.testing.assert_allclose(classifier.run(model, made["images"]), made["answers"], atol=1e-6)
