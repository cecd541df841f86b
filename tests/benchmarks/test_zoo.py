"""benchmarks/zoo: what of a build file of the vendor's zoo is set, its row of the table, and networks written here."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from pipeline.config.build_file import load_build_file
from pipeline.errors import ConfigError
from pipeline.host.extras import install_command
from pipeline.onnx_models import classifier

torch = pytest.importorskip("torch", reason="pip install torch")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
BUILD_FILE = """\
name: net_int8
frontend: {type: onnx, checkpoint: /path/to/net.onnx, shape: {input: [1, 3, 64, 64]}}
backend: {type: tvm_vacc, dtype: int8, quantize: {calibrate_mode: percentile}}
dataset:
  path: /path/to/images
  sampler: {suffix: JPEG, get_data_num: 50}
  process_ops:
    - {type: DecodeImage}
    - {type: Resize, size: [64, 64]}
    - {type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
    - {type: ToTensor}
"""


def import_script(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    __import__(name)
    return sys.modules[name]


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return import_script(monkeypatch, "zoo")


def write(checkout: Path, folder: str, name: str, text: str = BUILD_FILE) -> Path:
    path = checkout / "cv" / "classification" / folder / "build_in" / "build" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_entries_are_those_that_a_pattern_names(zoo: ModuleType, tmp_path: Path) -> None:
    for folder, name in (("vgg", "timm_vgg"), ("resnet", "torch_resnet"), ("resnet", "ppcls_resnet")):
        write(tmp_path, folder, name)
    keys = [each.key for each in zoo.entries(tmp_path, [])]
    assert keys == ["resnet/ppcls_resnet", "resnet/torch_resnet", "vgg/timm_vgg"]
    assert [each.key for each in zoo.entries(tmp_path, ["torch_*", "vgg"])] == ["resnet/torch_resnet", "vgg/timm_vgg"]
    assert [each.key for each in zoo.entries(tmp_path, ["*/ppcls_resnet"])] == ["resnet/ppcls_resnet"]
    with pytest.raises(ConfigError, match="give a clone of the zoo"):
        zoo.entries(tmp_path / "cv", [])


def test_changes_add_preprocessing_only_where_the_file_has_none(zoo: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "vgg", "timm_vgg")
    write(tmp_path, "yolov5_cls", "fp16", BUILD_FILE.partition("dataset:")[0].replace("dtype: int8", "dtype: fp16"))
    complete, bare = (zoo.entries(tmp_path, [word])[0] for word in ("vgg", "yolov5_cls"))
    cover = "dataset.sampler.cover_classes=false"
    assert complete.changes(1000) == [cover, "dataset.sampler.get_data_num=50"]
    assert complete.changes(20) == [cover, "dataset.sampler.get_data_num=20"]
    assert [each.partition("=")[0] for each in bare.changes(1000)] == ["dataset.vdsp_params"]
    assert bare.changes(1000)[0].endswith("yolov5_cls/build_in/vdsp_params/yolov5m_cls-vdsp_params.json")


def test_cells_say_why_when_a_build_was_refused(zoo: ModuleType) -> None:
    figures = {"same": 97, "kl": 0.00123, "sqnr_db": 27.44}
    built = {
        "key": "vgg/timm_vgg",
        "dtype": "int8",
        "form": "timm vgg11",
        "outcome": "built",
        "exact": {"images": 50, "same_answers": 49, "kl": 0.001, "sqnr_db": 28.0},
        "evaluation": {"images": 100, "openvino": figures},
        "cpu_seconds": 12,
    }
    shown = ["49/50, 0.0010, 28.0 dB", "97/100, 0.0012, 27.4 dB", "-", "12"]
    assert zoo.cells(built) == ["vgg/timm_vgg", "timm vgg11", "built", *shown]
    refused = {"key": "vgg/timm_vgg", "dtype": "int8", "outcome": "refused", "why": "error: a reason; some advice"}
    assert zoo.cells(refused) == ["vgg/timm_vgg", "-", "refused: a reason", "-", "-", "-", "-"]


def test_measure_takes_what_is_kept(zoo: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "vgg", "timm_vgg")
    entry = zoo.entries(tmp_path, [])[0]
    kept = tmp_path / "out" / "vgg-timm_vgg" / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"key": entry.key, "outcome": "built"}), encoding="utf-8")
    assert zoo.measure(entry, argparse.Namespace(out=tmp_path / "out")) == {"key": entry.key, "outcome": "built"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("keras") is not None, reason="the extra `keras` is installed")
def test_measure_names_the_extra_that_keras_networks_want(zoo: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "xception", "keras_xception", BUILD_FILE.replace("type: onnx", "type: keras"))
    (tmp_path / "out" / "images" / "calibration").mkdir(parents=True)
    options = argparse.Namespace(out=tmp_path / "out", most_images=50, fit_images=50, set=[], python="", keep=False)
    found = zoo.measure(zoo.entries(tmp_path, [])[0], options)
    assert found["outcome"] == "no network"
    assert f"making its network needs Keras; run: {install_command('keras')}" in found["why"]


def test_make_shares_a_network_between_files_that_agree_in_all_it_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = import_script(monkeypatch, "zoo_networks")
    form = networks.Form("a form", lambda classes, hw: pytest.fail("made again"))
    changes = {"percentile": "max", "mean: [0.5": "mean: [0.25", "net.onnx": "net_sim.onnx"}
    texts = [BUILD_FILE, *(BUILD_FILE.replace(old, new) for old, new in changes.items())]
    stems = []
    for index, text in enumerate(texts):
        cfg = load_build_file(write(tmp_path, "vgg", f"file_{index}", text))
        stems.append(networks.stem_of(form, cfg, 1000))
        (tmp_path / f"{stems[-1]}.onnx").touch()
        assert (
            networks.make(form, cfg, argparse.Namespace(out=tmp_path, fit_images=1000))
            == tmp_path / f"{stems[-1]}.onnx"
        )
    assert stems[0] == stems[1]
    assert len(set(stems)) == 3


# Parameters of 1000 classes, in millions, as the papers and the tables of their code bases give them.
FORMS = {"ShuffleNetV1": 1.9, "ESNet": 3.2, "YoloV5Classifier": 13.0, "YoloV11Classifier": 2.8}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_forms_have_the_published_size_and_are_taken_as_the_zoo_exports_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = import_script(monkeypatch, "zoo_forms")
    network = forms.ESNet(0.5, 1000) if name == "ESNet" else getattr(forms, name)(1000)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(FORMS[name], abs=0.05)
    path = tmp_path / "network.onnx"
    with pytest.warns(DeprecationWarning):
        torch.onnx.export(network.eval(), (torch.zeros(1, 3, 128, 128),), str(path), dynamo=False, opset_version=11)
    model = classifier.load(path, (3, 128, 128))
    onnx.checker.check_model(model)
    assert next(each.dim_param for each in model.graph.input[0].type.tensor_type.shape.dim)
