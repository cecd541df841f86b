"""examples/cpp: built with the headers of the Python wheel, it gives the answers of the Python runner."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_fixtures import REPOSITORY

from pipeline.building import build
from pipeline.config.build_file import BuildConfig
from pipeline.data import preprocess
from pipeline.packages.package import Package, open_package
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place

pytestmark = [pytest.mark.slow, pytest.mark.openvino]

MakeConfig = Callable[..., BuildConfig]
OPS = (
    "dataset.process_ops=[{type: DecodeImage}, {type: Resize, size: 36, interpolation: BILINEAR_PILLOW}, "
    "{type: CenterCrop, crop_size: 32}, {type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}, "
    "{type: ToTensor}]"
)
# Height, width: of the crop's size, larger, smaller, long; the last one is resized in another order by recent Pillow.
SIZES = ((36, 36), (40, 44), (97, 51), (20, 33), (33, 500), (300, 41))


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built program."""
    openvino = pytest.importorskip("openvino")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler here")
    folder = tmp_path_factory.mktemp("cpp")
    found = f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}"
    subprocess.run(["cmake", "-S", str(REPOSITORY / "examples" / "cpp"), "-B", str(folder), found], check=True)
    done = subprocess.run(["cmake", "--build", str(folder)], check=True, capture_output=True, text=True)
    assert "warning" not in done.stdout + done.stderr
    return folder / "classify"


@pytest.fixture
def package(make_config: MakeConfig) -> Package:
    return open_package(build(make_config(OPS), lambda line: None).prefix)


def test_answers_are_those_of_python(classify: Path, package: Package, tmp_path: Path) -> None:
    assert package.takes_pixels
    paths, prepared = [], []
    for index, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{index}.ppm")
        Image.fromarray(pixels).save(paths[-1])
        prepared.append(preprocess.load(package.preprocess(), paths[-1], raw=True))
    with open_backend(Runtime.OPENVINO, package.model, batch=len(paths), placement=place(1, 1)) as backend:
        expected = backend.infer(np.stack(prepared))
    command = [str(classify), str(package.folder), *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(path) for path in paths]
    assert [int(row[1]) for row in rows] == expected.argmax(axis=1).tolist()
    scores = [float(row[2]) for row in rows]
    np.testing.assert_allclose(scores[:-1], expected.max(axis=1)[:-1], rtol=1e-5)
    np.testing.assert_allclose(scores[-1], expected.max(axis=1)[-1], rtol=0.02)
    names = [known.name for known in package.classes()]
    assert [row[3] for row in rows] == [names[answer] for answer in expected.argmax(axis=1)]


def test_faults_are_one_line_and_exit_2(classify: Path, package: Package, tmp_path: Path) -> None:
    (tmp_path / "cut.ppm").write_bytes(b"P6 40 40 255\n" + bytes(100))
    (tmp_path / "not.ppm").write_bytes(b"\xff\xd8\xff")
    for arguments, fault in (
        ([str(package.folder), str(tmp_path / "cut.ppm")], "cut short"),
        ([str(package.folder), str(tmp_path / "not.ppm")], "no binary PPM"),
        ([str(tmp_path), str(tmp_path / "cut.ppm")], "cannot be read"),
        ([], "usage: classify"),
    ):
        done = subprocess.run([str(classify), *arguments], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert fault in done.stderr
        assert done.stderr.count("\n") == 1
