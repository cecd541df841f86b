"""examples/cpp: built with the headers of the Python wheel, it gives the answers of the Python runner."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from run_fixtures import REPOSITORY

from pipeline.artefacts import write_manifest
from pipeline.building import build
from pipeline.config.build_config import BuildConfig
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


def build_with(resize: str, make_config: MakeConfig, *more: str) -> Package:
    return open_package(build(make_config(OPS.format(filter=resize), *more), lambda line: None).prefix)


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


def run_both(classify: Path, package: Package, paths: list[Path]) -> tuple[list[list[str]], npt.NDArray[np.float32]]:
    """Return the program's rows, and the scores that Python computes."""
    assert package.takes_pixels
    prepared = [preprocess.load(package.preprocess(), path, raw=True) for path in paths]
    with open_backend(Runtime.OPENVINO, package.model, batch=len(paths), placement=place(1, 1)) as backend:
        expected = backend.infer(np.stack(prepared))
    command = [str(classify), str(package.folder), *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split("\t") for line in done.stdout.splitlines()], expected


@pytest.mark.parametrize("resize", ["BILINEAR_PILLOW", "BILINEAR_CV"])
def test_answers_are_those_of_python(classify: Path, make_config: MakeConfig, resize: str, tmp_path: Path) -> None:
    package = build_with(resize, make_config)
    paths = write_images(tmp_path)
    rows, expected = run_both(classify, package, paths)
    assert [row[0] for row in rows] == [str(path) for path in paths]
    assert [int(row[1]) for row in rows] == expected.argmax(axis=1).tolist()
    scores = [float(row[2]) for row in rows]
    np.testing.assert_allclose(scores[:-1], expected.max(axis=1)[:-1], rtol=1e-5)
    np.testing.assert_allclose(scores[-1], expected.max(axis=1)[-1], rtol=0.02)
    names = [known.name for known in package.classes()]
    assert [row[3] for row in rows] == [names[answer] for answer in expected.argmax(axis=1)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, of the damaged one
@pytest.mark.parametrize("library", ["paddleclas", "transformers"])
def test_sizes_corners_and_exif_are_those_of_the_packages_library(
    classify: Path, make_config: MakeConfig, library: str, tmp_path: Path
) -> None:
    package = build_with("BILINEAR_CV", make_config, f"dataset.preprocess_as={library}")
    paths = []
    # Sizes whose longer side comes to a half or near it, whose corners have an odd rest, in each orientation.
    for index, size in enumerate(((40, 47), (97, 51), (24, 35), (48, 55), (33, 70), (60, 41), (36, 39), (72, 101))):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = index + 1
        for suffix in ("png", "jpg"):
            paths.append(tmp_path / f"{index}.{suffix}")
            Image.fromarray(pixels).save(paths[-1], exif=exif)
    damaged = paths[3].read_bytes().replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert damaged != paths[3].read_bytes()
    paths.append(tmp_path / "damaged.jpg")
    paths[-1].write_bytes(damaged)
    rows, expected = run_both(classify, package, paths)
    assert [int(row[1]) for row in rows] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose([float(row[2]) for row in rows], expected.max(axis=1), rtol=1e-5)


def test_a_stretched_image_is_cropped_where_the_file_says(
    classify: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    package = build_with("BILINEAR_CV", make_config)
    vdsp = json.loads((package.folder / "preprocess.json").read_text())
    del vdsp["OpConfig"]["ResizeMode"]
    vdsp["OpConfig"] |= {"ResizeHeight": 44, "ResizeWidth": 50, "CropY": 3, "CropX": 17}
    (package.folder / "preprocess.json").write_text(json.dumps(vdsp))
    write_manifest(package.folder, "package")
    rows, expected = run_both(classify, open_package(package.prefix), write_images(tmp_path))
    np.testing.assert_allclose([float(row[2]) for row in rows], expected.max(axis=1), rtol=1e-5)


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
