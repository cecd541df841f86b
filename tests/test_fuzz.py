"""Whatever a file holds, reading it gives what it should or a PipelineError: no other exception, no hang, no damage.

`FUZZ_EXAMPLES=100000 python -m pytest tests/test_fuzz.py` looks longer.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from run_fixtures import TinyWorkspace, float32_model

from pipeline.config.build_file import load_build_file
from pipeline.config.vdsp import PreprocessSpec, ResizeFilter, ResizeMode, load_vdsp, to_vdsp_dict
from pipeline.data import npz, preprocess
from pipeline.data.calibration_list import read_calibration_list
from pipeline.data.labels import read_classes, read_label_list
from pipeline.errors import PipelineError
from pipeline.onnx_models import classifier
from pipeline.packages.package import open_package
from pipeline.quant.observers import ObserverSet
from pipeline.quant.rounding import read_rounded
from pipeline.weights import checkpoints

REPOSITORY = Path(__file__).parents[1]
fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Edits = list[tuple[float, int, bytes]]
# Where (as a share of the length), how many bytes go, what comes in their place.
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=6)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["int8", "../..", "/dev/null", "percentile", "JPEG", "auto", "\x00", "é" * 300]),
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


def mutate(content: bytes, changes: Edits) -> bytes:
    for share, gone, comes in changes:
        at = int(share * len(content))
        content = content[:at] + comes + content[at + gone :]
    return content


def tolerant(read: Callable[[], object]) -> None:
    """Fail on anything but a result or an error of one line a fault that is for the user to fix."""
    try:
        read()
    except PipelineError as err:
        assert str(err).strip()
        assert "Traceback" not in str(err)


def replaced(document: object, path: list[int], value: object) -> object:
    """Return a document with something else at a place in it, found by the numbers of `path`."""
    if not path or not isinstance(document, dict | list) or not document:
        return value
    if isinstance(document, list):
        at = path[0] % len(document)
        return [*document[:at], replaced(document[at], path[1:], value), *document[at + 1 :]]
    key = list(document)[path[0] % len(document)]
    return {**document, key: replaced(document[key], path[1:], value)}


BUILD_FILE = (REPOSITORY / "build_configs" / "timm_wideres.yaml").read_bytes()
BUILD_DOCUMENT = yaml.safe_load(BUILD_FILE)
VDSP = to_vdsp_dict(
    PreprocessSpec(
        resize=ResizeMode.SHORTER_SIDE,
        resize_hw=(40, 40),
        filter=ResizeFilter.BILINEAR_CV,
        crop_hw=(32, 32),
        crop_yx=None,
        synthetic_hw=(40, 40),
    )
)


@fuzzed
@given(edits)
def test_build_file_of_any_bytes(tmp_path: Path, changes: Edits) -> None:
    (tmp_path / "x.yaml").write_bytes(mutate(BUILD_FILE, changes))
    tolerant(lambda: load_build_file(tmp_path / "x.yaml"))


@fuzzed
@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), plain)
def test_build_file_of_any_values(tmp_path: Path, place: list[int], value: object) -> None:
    document = replaced(BUILD_DOCUMENT, place, value)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(document), encoding="utf-8", errors="surrogatepass")
    tolerant(lambda: load_build_file(tmp_path / "x.yaml"))


@fuzzed
@given(st.text(max_size=30), st.text(max_size=30))
def test_overrides_of_any_text(key: str, value: str) -> None:
    tolerant(lambda: load_build_file("timm_wideres.yaml", [f"{key}={value}", value]))


@fuzzed
@given(st.lists(st.integers(0, 99), min_size=1, max_size=3), plain)
def test_vdsp_params_of_any_values(tmp_path: Path, place: list[int], value: object) -> None:
    (tmp_path / "x.json").write_text(json.dumps(replaced(VDSP, place, value)), encoding="utf-8")
    tolerant(lambda: load_vdsp(tmp_path / "x.json"))


@fuzzed
@given(edits)
def test_vdsp_params_of_any_bytes(tmp_path: Path, changes: Edits) -> None:
    (tmp_path / "x.json").write_bytes(mutate(json.dumps(VDSP).encode(), changes))
    tolerant(lambda: load_vdsp(tmp_path / "x.json"))


@fuzzed
@given(st.binary(max_size=200))
@pytest.mark.parametrize(
    "read", [npz.read_datalist, read_label_list, read_classes, read_calibration_list], ids=lambda read: read.__name__
)
def test_lists_of_any_bytes(tmp_path: Path, read: Callable[[Path], object], content: bytes) -> None:
    path = tmp_path / "list.txt"
    for given_content in (content, b"# root: /tmp\n" + content, b"n01440764 0\n" + content, content * 3):
        path.write_bytes(given_content)
        tolerant(lambda: read(path))


def saved_npz(key: str, array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {key: array}
    np.savez(stream, **arrays)
    return stream.getvalue()


@fuzzed
@given(edits)
def test_npz_of_any_bytes(tmp_path: Path, changes: Edits) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(mutate(saved_npz("input_0", np.zeros((3, 9, 8), np.uint8)), changes))
    tolerant(lambda: npz.read_image_npz(path))
    path.write_bytes(mutate(saved_npz("output_0", np.zeros((1, 50), np.float32)), changes))
    tolerant(lambda: npz.read_result_npz(path))
    for read in (ObserverSet.load, read_rounded):
        tolerant(lambda read=read: read(path))  # type: ignore[misc]


def encoded(mode: str, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((37, 29), 60).convert(mode).save(stream, kind)
    return stream.getvalue()


@fuzzed
@given(
    st.sampled_from([("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG")]),
    edits,
)
def test_images_of_any_bytes(tmp_path: Path, form: tuple[str, str], changes: Edits) -> None:
    content = mutate(encoded(*form), changes)

    def read() -> None:
        image = preprocess.decode(content)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[0] == 3

    tolerant(read)


@fuzzed
@given(edits)
def test_onnx_models_of_any_bytes(tmp_path: Path, changes: Edits) -> None:
    (tmp_path / "x.onnx").write_bytes(mutate(float32_model().SerializeToString(), changes))
    tolerant(lambda: classifier.load(tmp_path / "x.onnx", (3, 32, 32)))


def saved_checkpoint(kind: str) -> bytes:
    state = OrderedDict((f"layer.{i}.weight", torch.full((4, 3), float(i))) for i in range(3))
    stream = io.BytesIO()
    if kind == "zip.pth":
        torch.save(state, stream)
    elif kind == "legacy.pth":
        torch.save({"state_dict": state}, stream, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        stream.write(safetensors.torch.save(dict(state)))
    else:
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        pickle.dump({**arrays, "StructuredToParameterName@@": {name: name for name in arrays}}, stream, protocol=4)
    return stream.getvalue()


CHECKPOINTS = ("zip.pth", "legacy.pth", "safetensors", "pdparams")


@fuzzed
@given(st.sampled_from(CHECKPOINTS), edits)
def test_checkpoints_of_any_bytes(tmp_path: Path, kind: str, changes: Edits) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(mutate(saved_checkpoint(kind), changes))
    tolerant(lambda: checkpoints.read_state_dict(path))


@fuzzed
@given(plain)
def test_checkpoints_of_any_pickle(tmp_path: Path, value: object) -> None:
    """Also under the names of both libraries: what each reads is restricted."""
    for suffix in ("pth", "pdparams"):
        (tmp_path / f"x.{suffix}").write_bytes(pickle.dumps({"layer.weight": value, "more": [value, {"inner": value}]}))
        tolerant(lambda suffix=suffix: checkpoints.read_state_dict(tmp_path / f"x.{suffix}"))  # type: ignore[misc]


@fuzzed
@given(st.sampled_from(["manifest.json", "package.json", "preprocess.json", "classes.tsv"]), edits)
def test_packages_with_a_file_of_any_bytes(tiny: TinyWorkspace, name: str, changes: Edits) -> None:
    path = tiny.folder / name
    content = path.read_bytes()
    try:
        path.write_bytes(mutate(content, changes))
        tolerant(lambda: open_package(tiny.prefix))
    finally:
        path.write_bytes(content)


@fuzzed
@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), plain)
def test_manifests_of_any_values(tiny: TinyWorkspace, place: list[int], value: object) -> None:
    path = tiny.folder / "manifest.json"
    content = path.read_bytes()
    try:
        path.write_text(json.dumps(replaced(json.loads(content), place, value)), encoding="utf-8")
        tolerant(lambda: open_package(tiny.prefix))
    finally:
        path.write_bytes(content)


def test_what_is_fuzzed_is_sound(tmp_path: Path, tiny: TinyWorkspace) -> None:
    """Else the tests above would pass on files that no change makes any worse."""
    load_build_file("timm_wideres.yaml")
    (tmp_path / "x.json").write_text(json.dumps(VDSP), encoding="utf-8")
    load_vdsp(tmp_path / "x.json")
    onnx.save(float32_model(), tmp_path / "x.onnx")
    classifier.load(tmp_path / "x.onnx", (3, 32, 32))
    open_package(tiny.prefix)
    (tmp_path / "x.npz").write_bytes(saved_npz("input_0", np.zeros((3, 9, 8), np.uint8)))
    npz.read_image_npz(tmp_path / "x.npz")
    assert preprocess.decode(encoded("CMYK", "JPEG")).shape == (3, 29, 37)
    for kind in CHECKPOINTS:
        (tmp_path / f"x.{kind}").write_bytes(saved_checkpoint(kind))
        assert len(checkpoints.read_state_dict(tmp_path / f"x.{kind}")) == 3
