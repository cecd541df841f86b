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
    "dataset.process_ops=[{{type: DecodeImage}}, {{type: Resize, size: 36, interpolation: {filter}}}, "
    "{{type: CenterCrop, crop_size: 32}}, "
    "{{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}, {{type: ToTensor}}]"
)
# Height, width: of the crop's size, larger, smaller, long; the last one is resized in another order by recent Pillow.
SIZES = ((36, 36), (40, 44), (97, 51), (20, 33), (33, 500), (300, 41))


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built program."""
    openvino = pytest.importorskip("openvino")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler here")
    if not Path("/usr/include/jpeglib.h").is_file() or not Path("/usr/include/png.h").is_file():
        pytest.skip("no headers of libjpeg or libpng here")
    folder = tmp_path_factory.mktemp("cpp")
    found = f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}"
    subprocess.run(["cmake", "-S", str(REPOSITORY / "examples" / "cpp"), "-B", str(folder), found], check=True)
    done = subprocess.run(["cmake", "--build", str(folder)], check=True, capture_output=True, text=True)
    assert "warning" not in done.stdout + done.stderr
    return folder / "classify"


@pytest.fixture
def package(make_config: MakeConfig) -> Package:
    return build_with("BILINEAR_PILLOW", make_config)


def build_with(resize: str, make_config: MakeConfig) -> Package:
    return open_package(build(make_config(OPS.format(filter=resize)), lambda line: None).prefix)


def write_images(folder: Path) -> list[Path]:
    """Ten images: PPM, JPEG (also grey, progressive, with half the colour), PNG (also grey, palette, alpha)."""
    colours = {
        size: np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        for index, size in enumerate(SIZES)
    }
    images = {size: Image.fromarray(colour) for size, colour in colours.items()}
    same, near, larger, smaller, long, tall = images.values()
    clear = near.convert("RGBA")
    clear.putalpha(Image.fromarray(colours[SIZES[1]][..., 0]))
    same.save(folder / "same.ppm")
    near.save(folder / "near.jpg", quality=95, subsampling=0)
    larger.save(folder / "larger.jpg", quality=80, subsampling=2, progressive=True)
    smaller.convert("L").save(folder / "grey.jpg")
    long.save(folder / "long.png")
    clear.save(folder / "alpha.png")
    near.convert("P").save(folder / "palette.png")
    near.convert("1").save(folder / "bits.png")
    smaller.convert("L").save(folder / "grey.png")
    tall.save(folder / "tall.jpeg", quality=90)  # resized in another order by recent Pillow
    return [folder / name for name in NAMES]


NAMES = (
    *("same.ppm", "near.jpg", "larger.jpg", "grey.jpg", "long.png"),
    *("alpha.png", "palette.png", "bits.png", "grey.png", "tall.jpeg"),
)


@pytest.mark.parametrize("resize", ["BILINEAR_PILLOW", "BILINEAR_CV"])
def test_answers_are_those_of_python(classify: Path, make_config: MakeConfig, resize: str, tmp_path: Path) -> None:
    package = build_with(resize, make_config)
    assert package.takes_pixels
    paths = write_images(tmp_path)
    prepared = [preprocess.load(package.preprocess(), path, raw=True) for path in paths]
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
    image = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "cut.ppm").write_bytes(b"P6 40 40 255\n" + bytes(100))
    (tmp_path / "huge.ppm").write_bytes(b"P6 60000 60000 255\n")
    (tmp_path / "not.ppm").write_bytes(b"GIF89a")
    image.save(tmp_path / "whole.jpg")
    image.save(tmp_path / "whole.png")
    for suffix in ("jpg", "png"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) - 20])
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for arguments, fault in (
        ([str(package.folder), str(tmp_path / "cut.ppm")], "cut short"),
        ([str(package.folder), str(tmp_path / "huge.ppm")], "60000 x 60000 pixels"),
        ([str(package.folder), str(tmp_path / "not.ppm")], "not a JPEG, PNG or binary PPM"),
        ([str(package.folder), str(tmp_path / "cut.jpg")], "cut.jpg: Premature end"),
        ([str(package.folder), str(tmp_path / "cut.png")], "cut.png: cut short"),
        ([str(package.folder), str(tmp_path / "cmyk.jpg")], "cmyk.jpg: Unsupported color conversion"),
        ([str(tmp_path), str(tmp_path / "cut.ppm")], "cannot be read"),
        ([], "usage: classify"),
    ):
        done = subprocess.run([str(classify), *arguments], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert fault in done.stderr
        assert done.stderr.count("\n") == 1
