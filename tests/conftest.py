"""What several test files share: a small tree of images, a small residual network fitted to it, a build file for both.

All of it is made by the code under test, once a session; nothing here stands in for a part of it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import yaml
from PIL import Image
from torch import Tensor, nn

from pipeline.building import Built, build
from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.config.vdsp import PreprocessSpec, ResizeFilter, ResizeMode
from pipeline.data import preprocess
from pipeline.models import exporter
from pipeline.models.resnet import BasicBlock, conv1x1
from pipeline.packages.package import Package, open_package
from pipeline.runtimes.base import Runtime
from pipeline.terminal import console
from pipeline.weights import sample_weights

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs like this, and the commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

CLASSES = ("n90000001", "n90000002", "n90000003", "n90000004")
IMAGES_PER_CLASS = 6
SIDE = 32  # px, of the network's input
_COLOURS = ((220, 60, 60), (60, 200, 60), (60, 80, 220), (200, 200, 60))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MakeConfig = Callable[..., BuildConfig]


class TinyResNet(nn.Module):
    """The layers of a ResNet, one block of either kind: stem, pooling, additions with and without projection."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        projection = nn.Sequential(conv1x1(8, 16, 2), nn.BatchNorm2d(16))
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1, None, 64))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2, projection, 64))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))
        return logits


def _draw(class_index: int, image_index: int) -> Image.Image:
    """Return 44x40 px of stripes in the colour of the class, with noise."""
    rng = np.random.default_rng((class_index, image_index))
    rows, columns = np.mgrid[0:40, 0:44]
    wave = np.sin((rows * (class_index + 1) + columns) * 0.4 + rng.uniform(0, 6))
    pixels = np.asarray(_COLOURS[class_index]) + 30 * wave[..., None] + rng.normal(0, 12, (40, 44, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(
    params=[
        pytest.param(Runtime.ONNXRUNTIME, id="onnxruntime"),
        pytest.param(Runtime.OPENVINO, id="openvino", marks=pytest.mark.openvino),
    ]
)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each runtime in turn; a test that takes it holds for both."""
    found: Runtime = request.param
    if importlib.util.find_spec(found.value) is None:
        pytest.skip(f"{found.value} is not installed")
    return found


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the user of this machine has swept and downloaded out of the tests."""
    monkeypatch.setenv("INT8_PIPELINE_CACHE", str(tmp_path_factory.getbasetemp() / "user_cache"))


@pytest.fixture(autouse=True)
def as_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts with the output of a command, whatever an earlier one configured for its process."""
    monkeypatch.setattr(console, "_style", console._Style(quiet=False))


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of tests measure no speed, but those that are about it."""
    monkeypatch.setenv("INT8_PIPELINE_TRIAL_SECONDS", "0")


@pytest.fixture(scope="session")
def image_tree_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders, to be read only; `image_tree` is a copy to change."""
    root = tmp_path_factory.mktemp("images")
    for index, wnid in enumerate(CLASSES):
        (root / wnid).mkdir()
        for image in range(IMAGES_PER_CLASS):
            _draw(index, image).save(root / wnid / f"{wnid}_{image}.JPEG", quality=95)
    return root


@pytest.fixture
def image_tree(image_tree_master: Path, tmp_path: Path) -> Path:
    """Four classes with six JPEG images each, folders named like wnids (but none of ImageNet's)."""
    return Path(shutil.copytree(image_tree_master, tmp_path / "images"))


@pytest.fixture(scope="session")
def spec() -> PreprocessSpec:
    """The preprocessing of `build_file`."""
    return PreprocessSpec(
        resize=ResizeMode.SHORTER_SIDE,
        resize_hw=(36, 36),
        filter=ResizeFilter.BILINEAR_CV,
        crop_hw=(SIDE, SIDE),
        crop_yx=None,
        mean=_MEAN,
        std=_STD,
        synthetic_hw=(36, 36),
    )


@pytest.fixture(scope="session")
def batch_nchw(image_tree_master: Path, spec: PreprocessSpec) -> npt.NDArray[np.float32]:
    """All images, prepared: float32 [24, 3, 32, 32]."""
    paths = sorted(image_tree_master.rglob("*.JPEG"))
    return np.stack([preprocess.apply(spec, preprocess.decode(path)) for path in paths])


@pytest.fixture(scope="session")
def tiny_network(image_tree_master: Path, spec: PreprocessSpec) -> nn.Module:
    """A TinyResNet that classifies the images, its norms and classifier fitted as the sample weights are."""
    network = TinyResNet(len(CLASSES))
    images = [(path, CLASSES.index(path.parent.name)) for path in sorted(image_tree_master.rglob("*.JPEG"))]
    sample_weights.fit_sample_weights(
        network,
        lambda image: preprocess.apply(spec, np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))),
        images,
    )
    return network.eval()


@pytest.fixture(scope="session")
def tiny_model(tiny_network: nn.Module) -> onnx.ModelProto:
    """TinyResNet as the exporter makes it. Copy before changing it."""
    return exporter.to_onnx(tiny_network, (3, SIDE, SIDE))


@pytest.fixture(scope="session")
def tiny_onnx(tiny_model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    onnx.save(tiny_model, path)
    return path


@pytest.fixture
def ending_in(tiny_model: onnx.ModelProto, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes TinyResNet with more nodes behind its output, from "logits" to "scores"."""

    def write(*nodes: onnx.NodeProto) -> Path:
        model = onnx.ModelProto()
        model.CopyFrom(tiny_model)
        graph = model.graph
        for node in graph.node:
            node.output[:] = ["logits" if name == graph.output[0].name else name for name in node.output]
        graph.node.extend(nodes)
        graph.output[0].name = "scores"
        onnx.save(model, tmp_path / "ending.onnx")
        return tmp_path / "ending.onnx"

    return write


def _write_build_file(folder: Path, images: Path, checkpoint: Path) -> Path:
    """Write `tiny.yaml` with its workspace into a folder."""
    values = {
        "name": "tiny",
        "frontend": {"type": "onnx", "checkpoint": str(checkpoint), "shape": {"input": [1, 3, SIDE, SIDE]}},
        "backend": {"quantize": {"calibrate_mode": "percentile"}},
        "dataset": {
            "path": str(images),
            "sampler": {"get_data_num": 20},
            "process_ops": [
                {"type": "DecodeImage"},
                {"type": "Resize", "size": 36},
                {"type": "CenterCrop", "crop_size": SIDE},
                {"type": "Normalize", "mean": list(_MEAN), "std": list(_STD)},
                {"type": "ToTensor"},
            ],
        },
        "workspace": {"path": str(folder / "workspace")},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture
def make_config(tmp_path: Path, image_tree: Path, tiny_onnx: Path) -> MakeConfig:
    """Return a function that writes `tiny.yaml` and loads it with overrides, `section.key=value`."""
    path = _write_build_file(tmp_path, image_tree, tiny_onnx)

    def make(*overrides: str) -> BuildConfig:
        return load_build_file(path, overrides)

    return make


@dataclass(frozen=True)
class FinishedBuild:
    """What `build` of `tiny.yaml` made, as it is written. To be read only; a build takes a second."""

    file: Path  # tiny.yaml, with images/ and workspace/ beside it
    built: Built
    lines: tuple[str, ...]  # that the build said

    @property
    def workspace(self) -> Path:
        return self.file.with_name("workspace")

    @property
    def package(self) -> Package:
        return open_package(self.built.prefix)

    def config(self, *overrides: str) -> BuildConfig:
        return load_build_file(self.file, overrides)

    def copied_config(self, workspace: Path, *overrides: str) -> BuildConfig:
        """As `config`, in a copy of the workspace that may be changed; all stages but the package are up to date."""
        shutil.copytree(self.workspace, workspace)
        return self.config(f"workspace.path={workspace}", *overrides)


@pytest.fixture(scope="session")
def finished(image_tree_master: Path, tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedBuild:
    """The build of `tiny.yaml` that tests share which only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(image_tree_master, folder / "images")
    path = _write_build_file(folder, folder / "images", tiny_onnx)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("INT8_PIPELINE_TRIAL_SECONDS", "0")
        patched.setenv("INT8_PIPELINE_CACHE", str(folder / "user_cache"))
        built = build(load_build_file(path), lines.append)
    return FinishedBuild(path, built, tuple(lines))


@pytest.fixture
def start_python() -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts Python with arguments in a process of its own, `pipeline` importable."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real checkpoints, unpacked; kept below $XDG_CACHE_HOME where that is set, else for this session."""
    tool = SHARED / "tools" / "unpack_weights.py"
    if not tool.is_file():
        pytest.skip(f"{tool} is not there")
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) / "int8-pipeline-tests" if cache else tmp_path_factory.mktemp("weights")
    subprocess.run([sys.executable, str(tool), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images, `imagenet_train1k/` and `nips2017_dev/`."""
    folder = SHARED / "data"
    if not (folder / "nips2017_dev").is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


# Fixtures of the tests that run packages. The path lets test files import their helpers too.
sys.path.insert(0, str(Path(__file__).parent))
from run_fixtures import command, in_workspace, many, tiny, tiny_workspace_master  # noqa: E402, F401
