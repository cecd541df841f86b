"""A tiny package and the workspace it was built in, for the tests of everything that runs packages. No torch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.artefacts import write_json, write_manifest
from pipeline.config.vdsp import PreprocessSpec, ResizeMode, to_vdsp_dict
from pipeline.data import npz
from pipeline.data.labels import classes_of, write_classes
from pipeline.packages.package import Package, open_package
from pipeline.quant import placement, qdq
from pipeline.quant.qmath import Range
from pipeline.run.results import open_run

REPOSITORY = Path(__file__).parents[1]
NAME = "tiny"
FOLDER = f"{NAME}-int8-percentile-3_32_32-vacc"
CLASS_IDS = ("n90000001", "n90000002", "n90000003", "n90000004", "n90000005", "n90000006")
IMAGES = 23  # no multiple of any batch that the tests use
SPEC = PreprocessSpec(
    resize=ResizeMode.SHORTER_SIDE,
    resize_hw=(36, 36),
    crop_hw=(32, 32),
    crop_yx=None,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    synthetic_hw=(36, 36),
)

Float32 = npt.NDArray[np.float32]


def read_local_datalist(path: Path) -> list[Path]:
    """Return the files of a datalist that lie on this machine, as all do that tests write."""
    listed = npz.read_datalist(path)
    local = [entry for entry in listed if isinstance(entry, Path)]
    assert len(local) == len(listed)
    return local


@dataclass(frozen=True)
class TinyWorkspace:
    """A folder that looks as if `build` had run in it."""

    root: Path  # of deploy_weights/

    @property
    def deploy(self) -> Path:
        return self.root / "deploy_weights"

    @property
    def folder(self) -> Path:
        return self.deploy / FOLDER

    @property
    def prefix(self) -> Path:
        return self.folder / NAME

    @property
    def float32_model(self) -> Path:
        return self.deploy / ".cache" / "export" / "0123" / "model.onnx"

    @property
    def datalist(self) -> Path:
        return self.deploy / ".cache" / "image2npz" / "4567" / "npz_datalist.txt"

    @property
    def images(self) -> list[Path]:
        return read_local_datalist(self.datalist)

    @property
    def package(self) -> Package:
        return open_package(self.prefix)


def float32_model(seed: int = 0) -> onnx.ModelProto:
    """A convolution network, [N, 3, 32, 32] -> logits of the classes."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (16, 8, 3, 3), "b2": (16,), "w3": (16, len(CLASS_IDS)), "b3": (6,)}
    weights = [numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), k) for k, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "w3", "b3"], ["logits"], "classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASS_IDS)])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def int8_model(model: onnx.ModelProto, images: npt.NDArray[np.generic] | None = None) -> onnx.ModelProto:
    """The same quantized, with the ranges that some images, or else noise, give."""
    observed = placement.observed_tensors(model)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in observed if name != "image")
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(1).normal(0, 1.2, (8, 3, 32, 32)) if images is None else images
    fed = {"image": noise.astype(np.float32)}
    fetched = [name for name in observed if name not in fed]
    values_of = {**fed, **dict(zip(fetched, session.run(fetched, fed), strict=True))}
    ranges = {
        name: Range(low=min(0.0, float(values_of[name].min())), high=max(0.0, float(values_of[name].max())))
        for name in observed
    }
    return qdq.insert_qdq(model, ranges, per_channel=True)


def write_package(folder: Path, float32: onnx.ModelProto, sample: bool = True) -> None:
    """Write a whole package; the files of its workspace are the caller's."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(int8_model(float32), folder / f"{NAME}.onnx")
    write_json(folder / "preprocess.json", to_vdsp_dict(SPEC))
    write_classes(folder / "classes.tsv", classes_of(CLASS_IDS))
    workspace = {
        "float32_model": "../.cache/export/0123/model.onnx",
        "datalist": "../.cache/image2npz/4567/npz_datalist.txt",
        "val_label": "../.cache/image2npz/4567/val_label.txt",
    }
    facts = {"name": NAME, "dtype": "int8", "input": [3, 32, 32], "sample": sample, "workspace": workspace}
    write_json(folder / "package.json", facts)
    write_manifest(folder, "package")


def draw(index: int, height: int = 44, width: int = 40) -> npt.NDArray[np.uint8]:
    """Return uint8 [3, H, W], in a colour and texture of its own."""
    rng = np.random.default_rng(index)
    colour = rng.integers(0, 256, (3, 1, 1))
    return (colour + rng.normal(0, 60, (3, height, width))).clip(0, 255).astype(np.uint8)


def _write_workspace(space: TinyWorkspace) -> None:
    model = float32_model()
    write_package(space.folder, model)
    space.float32_model.parent.mkdir(parents=True)
    onnx.save(model, space.float32_model)
    lines, labels = [], []
    for index in range(IMAGES):
        # Flat: their classes are known to the build's list alone.
        name = f"flat/ILSVRC2012_tiny_{index:04d}"
        npz.write_image_npz(space.datalist.parent / "npz" / f"{name}.npz", draw(index, 40 + index % 7, 47 - index % 5))
        lines.append(f"npz/{name}.npz\n")
        labels.append(f"{name} {index % len(CLASS_IDS)}\n")
    space.datalist.write_text("".join(lines), encoding="utf-8")
    (space.datalist.parent / "val_label.txt").write_text("".join(labels), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_workspace_master(tmp_path_factory: pytest.TempPathFactory) -> TinyWorkspace:
    """To be read only."""
    space = TinyWorkspace(tmp_path_factory.mktemp("workspace"))
    _write_workspace(space)
    return space


@pytest.fixture
def tiny(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> TinyWorkspace:
    """A workspace to change, in `tmp_path`."""
    space = TinyWorkspace(tmp_path)
    shutil.copytree(tiny_workspace_master.deploy, space.deploy)
    return space


@pytest.fixture
def in_workspace(tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch) -> TinyWorkspace:
    """The same, as current folder."""
    monkeypatch.chdir(tiny.root)
    return tiny


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A datalist of 200 large images, some seconds of work for one core."""
    first = tmp_path / "many" / "0000.npz"
    npz.write_image_npz(first, draw(0, 700, 900))
    paths = [first.with_name(f"{index:04d}.npz") for index in range(200)]
    for path in paths[1:]:
        os.link(first, path)
    npz.write_datalist(tmp_path / "many.txt", paths)
    return tmp_path / "many.txt"


def plain_answers(package: Package, images: Sequence[Path]) -> Float32:
    """Return float32 [images, classes] by the shortest way there is."""
    from pipeline.data import preprocess

    session = onnxruntime.InferenceSession(str(package.model), providers=["CPUExecutionProvider"])
    answers = []
    for image in images:
        with np.load(image) as archive:
            batch = preprocess.apply(package.preprocess(), archive["input_0"])[None]
        answers.append(session.run(None, {"image": batch})[0][0])
    return np.stack(answers)


def write_scores(out: Path, images: Sequence[Path], scores: Float32, **facts: object) -> None:
    """Write a finished results folder that holds `scores`."""
    with open_run(out, dict(facts), images) as samples:
        for sample, row in zip(samples, scores, strict=True):
            npz.write_result_npz(sample.result, row[None].astype(np.float32))


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the content of every file, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class CommandLine:
    """`python -m pipeline ...` in a session of its own, so that all its processes can be counted."""

    def __init__(self, arguments: Sequence[object], cwd: Path, program: Sequence[str] = ("-m", "pipeline")) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> list[int]:
        """Return the processes of the session that run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.popen.pid and state not in "ZX":
                found.append(int(stat.parent.name))
        return sorted(found)

    def workers(self) -> list[int]:
        def is_worker(pid: int) -> bool:
            try:
                return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                return False

        return [pid for pid in self.processes() if is_worker(pid)]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.popen.poll() is not None:
                raise AssertionError(f"ended with {self.popen.returncode}: {self.popen.communicate()}")
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.02)

    def finish(self, seconds: float = 120.0) -> tuple[int, str, str]:
        """Return exit code, standard output, standard error."""
        out, err = self.popen.communicate(timeout=seconds)
        return self.popen.returncode, out, err

    def assert_nothing_is_left(self, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while self.processes():
            assert time.monotonic() < deadline, f"processes left: {self.processes()}"
            time.sleep(0.02)

    def kill_all(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.popen.communicate()


RunCommand = Callable[..., CommandLine]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[RunCommand]:
    """Return a function that starts a command in `tmp_path`; whatever it leaves behind is ended with the test."""
    started: list[CommandLine] = []

    def start(*arguments: object) -> CommandLine:
        started.append(CommandLine(arguments, tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.kill_all()
