"""formats.py: what is written for other servers and runtimes, read back by theirs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from run_fixtures import CLASS_IDS, NAME, TinyWorkspace

from pipeline.commands.cli import main
from pipeline.errors import BackendError
from pipeline.packages import formats
from pipeline.packages.formats import service_name
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place


def noise(images: int = 5) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 1, (images, 3, 32, 32)).astype(np.float32)


def answers(space: TinyWorkspace, runtime: Runtime) -> np.ndarray:
    with open_backend(runtime, space.package.model, batch=5, placement=place(1, 1)) as backend:
        return backend.infer(noise())


def written(space: TinyWorkspace, *flags: str) -> Path:
    out = space.root / "out"
    assert main(["package", "-m", str(space.prefix), "--out", str(out), *flags]) == 0
    return out


def assert_described(folder: Path, space: TinyWorkspace) -> None:
    assert (folder / "preprocess.json").read_bytes() == (space.folder / "preprocess.json").read_bytes()
    names = [known.name for known in space.package.classes()]
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == names
    assert json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"] == "logits"


@pytest.mark.openvino
def test_ir_gives_the_answers_of_the_package(tiny: TinyWorkspace) -> None:
    openvino = pytest.importorskip("openvino")
    out = written(tiny, "--format", "openvino")
    assert sorted(path.name for path in out.iterdir()) == [
        *("classes.tsv", "labels.txt", "model.bin", "model.xml", "preprocess.json", "scores.json"),
    ]
    model = openvino.Core().compile_model(str(out / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = model([noise()])[0]
    np.testing.assert_allclose(found, answers(tiny, Runtime.OPENVINO), rtol=0, atol=1e-5)
    assert_described(out, tiny)


def test_ort_format_gives_the_answers_of_the_package(tiny: TinyWorkspace) -> None:
    out = written(tiny, "--format", "ort")
    content = (out / "model.ort").read_bytes()
    assert content[4:8] == b"ORTM"  # the format's own mark
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: noise()})
    np.testing.assert_allclose(found, answers(tiny, Runtime.ONNXRUNTIME), rtol=0, atol=1e-5)
    assert_described(out, tiny)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino)])
def test_triton_reads_its_configuration(tiny: TinyWorkspace, backend: str) -> None:
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    out = written(tiny, "--format", "triton", "--backend", backend, "-b", "24", "-i", "2")
    model = out / NAME
    config = text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == (NAME, backend, 24)
    (given,), (made,) = config.input, config.output
    assert (given.name, list(given.dims)) == ("image", [3, 32, 32])
    assert given.data_type == model_config_pb2.TYPE_FP32
    assert (made.name, list(made.dims), made.label_filename) == ("logits", [len(CLASS_IDS)], "labels.txt")
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16, 24]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if backend == "onnxruntime":
        assert (model / "1" / "model.onnx").read_bytes() == tiny.package.model.read_bytes()
        assert int(config.parameters["intra_op_thread_count"].string_value) >= 1
    else:
        assert {path.name for path in (model / "1").iterdir()} == {"model.xml", "model.bin"}
    assert_described(model, tiny)


def test_kserve_manifest_points_to_the_repository(tiny: TinyWorkspace) -> None:
    out = written(tiny, "--format", "kserve", "--storage_uri", "s3://bucket/models")
    manifest = yaml.safe_load((out / "inferenceservice.yaml").read_text(encoding="utf-8"))
    assert manifest["kind"] == "InferenceService"
    assert manifest["apiVersion"] == "serving.kserve.io/v1beta1"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    model = manifest["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://bucket/models"
    assert (model["modelFormat"], model["protocolVersion"]) == ({"name": "triton"}, "v2")
    assert (out / NAME / "config.pbtxt").is_file()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("wide_resnet50_2", "wide-resnet50-2"),
        ("3d_net", "classifier-3d-net"),
        ("__", "classifier"),
        ("--A.b--", "a-b"),
        ("9" * 80, "classifier-" + "9" * 52),
        ("a" * 62 + "_b", "a" * 62),
    ],
)
def test_service_name_begins_with_a_letter(name: str, wanted: str) -> None:
    assert service_name(name) == wanted
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", wanted)
    assert len(wanted) <= 63


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ("--format kserve", "--storage_uri: missing; "),
        ("--format kserve --storage_uri bucket", "--storage_uri bucket: expected an address such as s3://BUCKET"),
        ("--format triton --storage_uri s3://a/b", "--storage_uri: works only with --format kserve; "),
        ("--format ort -b 8", "--batch: works only with --format triton or kserve; "),
    ],
)
def test_wrong_flags_write_nothing(
    tiny: TinyWorkspace, capsys: pytest.CaptureFixture[str], flags: str, fault: str
) -> None:
    out = tiny.root / "out"
    assert main(["package", "-m", str(tiny.prefix), "--out", str(out), *flags.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {fault}")
    assert not out.exists()


def test_folder_that_holds_something_is_left_alone(tiny: TinyWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["package", "-m", str(tiny.prefix), "--format", "ort", "--out"]
    assert main([*arguments, str(tiny.folder)]) == 2
    assert "is there already; give an empty or new folder" in capsys.readouterr().err
    (tiny.root / "file").touch()
    assert main([*arguments, str(tiny.root / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("format_", ["openvino", "ort", "triton"])
def test_disk_without_room_for_the_model_is_named(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    usage = shutil.disk_usage(tiny.root)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: usage._replace(free=tiny.prefix.with_suffix(".onnx").stat().st_size - 1)
    )
    out = tiny.root / "out"
    assert main(["package", "-m", str(tiny.prefix), "--format", format_, "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: --out {out}: cannot be written (No space left on device); give another\n"
    assert not out.exists()


def test_conversion_that_fails_leaves_nothing(tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BackendError("no")

    monkeypatch.setattr(formats, "_save_ort", fail)
    before = set(tiny.root.iterdir())
    assert main(["package", "-m", str(tiny.prefix), "--format", "ort", "--out", str(tiny.root / "out")]) == 2
    assert set(tiny.root.iterdir()) == before
