"""A package in the formats of other servers and runtimes: OpenVINO IR, ORT format, Triton, KServe."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import yaml

from pipeline.artefacts import whole_folder, write_json
from pipeline.errors import BackendError, ConfigError, DataError
from pipeline.packages.package import CLASSES, PREPROCESS, Package
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place

LABELS = "labels.txt"
SCORES = "scores.json"
SERVICE_MANIFEST = "inferenceservice.yaml"
_IR, _ORT, _ONNX = "model.xml", "model.ort", "model.onnx"
_DTYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_QUEUE_DELAY_US = 2000  # how long Triton waits for a batch to fill
_STORAGE = re.compile(r"(s3|gs|pvc|https?|hdfs|webhdfs)://[\w./:@%+-]+")


class Format(Enum):
    OPENVINO = "openvino"  # IR: model.xml and model.bin
    ORT = "ort"  # what ONNX Runtime's builds for phones and edge devices load
    TRITON = "triton"  # a model repository of Triton Inference Server
    KSERVE = "kserve"  # the same, and an InferenceService manifest that points to where it is put


class TritonBackend(Enum):
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


@dataclass(frozen=True)
class Wanted:
    """What to write, and how a server is to run it."""

    format: Format
    out: Path  # a folder that is not there, or is empty
    backend: TritonBackend = TritonBackend.ONNXRUNTIME
    batch: int = 32  # images that a server may put together
    instances: int = 1  # models that compute at the same time
    threads: int = 1  # of each of them
    storage_uri: str | None = None  # KSERVE: where the model repository will lie


def write(package: Package, wanted: Wanted) -> list[Path]:
    """Write a package in another format, with its preprocessing and labels; the folder is complete or absent.

    Returns:
        The files written, below `wanted.out`.

    Raises:
        ConfigError: the folder is not empty, or the storage address is missing or invalid.
        BackendError: the engine that converts is not installed, or refuses the model.
        DataError: the folder cannot be written.
    """
    _check(wanted)
    try:
        # Not `publish`: our manifest does not belong in a server's model repository, nor its lock in a user's folder.
        with whole_folder(wanted.out) as folder:
            _check_room(package.model, folder)
            _WRITERS[wanted.format](package, wanted, folder)
    except OSError as err:
        raise DataError(f"--out {wanted.out}: cannot be written ({err.strerror}); give another") from err
    return sorted(path for path in wanted.out.rglob("*") if path.is_file())


def _check(wanted: Wanted) -> None:
    if wanted.out.exists() and (not wanted.out.is_dir() or any(wanted.out.iterdir())):
        raise ConfigError(f"--out {wanted.out}: is there already; give an empty or new folder")
    if wanted.format is not Format.KSERVE:
        return
    if wanted.storage_uri is None:
        raise ConfigError("--storage_uri: missing; say where the model repository will lie, as s3://BUCKET/FOLDER")
    if not _STORAGE.fullmatch(wanted.storage_uri):
        raise ConfigError(f"--storage_uri {wanted.storage_uri}: expected an address such as s3://BUCKET/FOLDER")


def _check_room(model: Path, folder: Path) -> None:
    """Raise OSError where a folder cannot hold a model: runtimes call that a model that they cannot load or save."""
    if shutil.disk_usage(folder).free < model.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_openvino(package: Package, wanted: Wanted, folder: Path) -> None:
    _save_ir(package, folder / _IR)
    _describe(package, folder)


def _write_ort(package: Package, wanted: Wanted, folder: Path) -> None:
    _save_ort(package, folder / _ORT)
    _describe(package, folder)


def _write_triton(package: Package, wanted: Wanted, folder: Path) -> None:
    model = folder / package.name
    (model / "1").mkdir(parents=True)
    if wanted.backend is TritonBackend.OPENVINO:
        _save_ir(package, model / "1" / _IR)
    else:
        _save_onnx(package, model / "1" / _ONNX)
    (model / "config.pbtxt").write_text(_triton_config(package, wanted), encoding="utf-8")
    _describe(package, model)


def _write_kserve(package: Package, wanted: Wanted, folder: Path) -> None:
    _write_triton(package, wanted, folder)
    name = service_name(package.name)
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "triton"},
                    "protocolVersion": "v2",
                    "storageUri": wanted.storage_uri,
                    "resources": {
                        "requests": {"cpu": str(wanted.instances * wanted.threads)},
                        "limits": {"cpu": str(wanted.instances * wanted.threads)},
                    },
                }
            }
        },
    }
    (folder / SERVICE_MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")


def service_name(name: str) -> str:
    """Return a model's name as Kubernetes takes it for a service: at most 63 characters, a letter first (DNS-1035)."""
    made = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not made[:1].isalpha():
        made = f"classifier-{made}"
    return made[:63].strip("-")


_WRITERS: dict[Format, Callable[[Package, Wanted, Path], None]] = {
    Format.OPENVINO: _write_openvino,
    Format.ORT: _write_ort,
    Format.TRITON: _write_triton,
    Format.KSERVE: _write_kserve,
}


def _describe(package: Package, folder: Path) -> None:
    """Write beside a model what its users need: preprocessing, classes in two forms, what the outputs are."""
    for name in (PREPROCESS, CLASSES):
        shutil.copyfile(package.folder / name, folder / name)
    labels = "".join(f"{known.name}\n" for known in package.classes())
    (folder / LABELS).write_text(labels, encoding="utf-8", errors="surrogateescape")
    scores = package.scores
    if scores is not None:
        write_json(folder / SCORES, {"scores": scores.value, "meaning": scores.meaning})


def _save_ir(package: Package, path: Path) -> None:
    try:
        from pipeline.runtimes.ov import save_ir
    except ImportError:
        raise BackendError("OpenVINO is not installed; run: pip install openvino") from None
    save_ir(package.model, path)


def _save_ort(package: Package, path: Path) -> None:
    try:
        from pipeline.runtimes.ort import save_ort
    except ImportError:
        raise BackendError("ONNX Runtime is not installed; run: pip install onnxruntime") from None
    save_ort(package.model, path)


def _save_onnx(package: Package, path: Path) -> None:
    try:
        from pipeline.runtimes.ort import save_onnx
    except ImportError:
        raise BackendError("ONNX Runtime is not installed; run: pip install onnxruntime") from None
    save_onnx(package.model, path)


def _triton_config(package: Package, wanted: Wanted) -> str:
    """Return a complete config.pbtxt, so that no backend has to derive anything."""
    with open_backend(Runtime.AUTO, package.model, batch=1, placement=place(1, 1)) as backend:
        given, made = backend.input, backend.output
    one = [] if package.batch is None else [package.batch]  # the batch, where the model has it fixed
    scores = [*one, len(package.classes())]
    batching = [] if one else [_batching(wanted.batch)]
    lines = [
        f'name: "{package.name}"',
        f'backend: "{wanted.backend.value}"',
        f"max_batch_size: {0 if one else wanted.batch}",
        "input [",
        f'  {{ name: "{given.name}" data_type: {_DTYPES[given.dtype]} dims: {[*one, *package.input_chw]} }}',
        "]",
        "output [",
        f'  {{ name: "{made.name}" data_type: TYPE_FP32 dims: {scores} label_filename: "{LABELS}" }}',
        "]",
        *batching,
        f"instance_group [ {{ count: {wanted.instances} kind: KIND_CPU }} ]",
    ]
    if wanted.backend is TritonBackend.ONNXRUNTIME:
        value = f'{{ string_value: "{wanted.threads}" }}'
        lines.append(f'parameters {{ key: "intra_op_thread_count" value: {value} }}')
    return "\n".join([*lines, ""])


def _batching(batch: int) -> str:
    preferred = sorted({size for size in (8, 16, batch) if size <= batch})
    return f"dynamic_batching {{ preferred_batch_size: {preferred} max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}"
