from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.choices import PreprocessAs
from pipeline.data import npz
from pipeline.errors import DataError


def some_image(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8)


def test_image_npz_is_read_back_and_by_numpy(tmp_path: Path) -> None:
    image_chw = some_image()
    npz.write_image_npz(tmp_path / "n01440764" / "a.npz", image_chw)
    found = npz.read_image_npz(tmp_path / "n01440764" / "a.npz")
    assert found.flags.writeable
    np.testing.assert_array_equal(found, image_chw)
    with np.load(tmp_path / "n01440764" / "a.npz", allow_pickle=False) as archive:
        assert archive.files == ["input_0"]
        np.testing.assert_array_equal(archive["input_0"], image_chw)
    assert zipfile.ZipFile(tmp_path / "n01440764" / "a.npz").testzip() is None
    assert [path.name for path in (tmp_path / "n01440764").iterdir()] == ["a.npz"]


def test_image_npz_has_equal_bytes_when_written_twice(tmp_path: Path) -> None:
    image_chw = some_image()
    npz.write_image_npz(tmp_path / "a.npz", image_chw, (123, 10**18))
    npz.write_image_npz(tmp_path / "b.npz", np.asfortranarray(image_chw), (123, 2 * 10**18))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("others", [{}, {"label": np.zeros(3)}])
@pytest.mark.parametrize("batched", [False, True])
def test_read_image_npz_takes_numpys_own_files(
    tmp_path: Path, save: object, others: dict[str, np.ndarray], batched: bool
) -> None:
    image_chw = some_image()
    save(tmp_path / "a.npz", input_0=image_chw[None] if batched else image_chw, **others)  # type: ignore[operator]
    np.testing.assert_array_equal(npz.read_image_npz(tmp_path / "a.npz"), image_chw)


def test_read_image_npz_keeps_the_order_of_a_fortran_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_0=np.asfortranarray(some_image()))
    np.testing.assert_array_equal(npz.read_image_npz(tmp_path / "a.npz"), some_image())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((3, 2, 2), np.uint8)}, "expected the key input_0, found image"),
        ({"input_0": np.zeros((3, 2, 2), np.float32)}, "expected input_0 uint8 [3, H, W], found float32 [3, 2, 2];"),
        ({"input_0": np.zeros((2, 2, 3), np.uint8)}, "expected input_0 uint8 [3, H, W], found uint8 [2, 2, 3];"),
        ({"input_0": np.zeros((2, 3, 2, 2), np.uint8)}, "expected input_0 uint8 [3, H, W], found uint8 [2, 3, 2, 2];"),
        ({"input_0": np.zeros((3, 0, 2), np.uint8)}, "expected input_0 uint8 [3, H, W], found uint8 [3, 0, 2];"),
        ({"input_0": np.array([None])}, "not a readable npz file ("),
    ],
)
def test_read_image_npz_names_what_it_found(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        npz.read_image_npz(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_read_image_npz_says_damaged_when_a_byte_differs(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    npz.write_image_npz(path, some_image(64, 64))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        npz.read_image_npz(path)
    assert str(caught.value) == f"{path}: damaged (checksum differs); make it again"


@pytest.mark.parametrize("keep", [0, 10, 40, 100, 300, -30, -1])
def test_read_image_npz_refuses_any_part_of_a_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.npz"
    npz.write_image_npz(path, some_image(16, 16), (1, 10**18))
    path.write_bytes(path.read_bytes()[:keep])
    os.utime(path, ns=(10**18, 10**18))
    assert not npz.is_image_of(path, (1, 10**18))
    with pytest.raises(DataError, match="not a readable npz file"):
        npz.read_image_npz(path)


def test_read_image_npz_survives_any_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    npz.write_image_npz(path, some_image(4, 4))
    whole = path.read_bytes()
    for position in range(len(whole)):
        for value in (0, 255):
            path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                np.testing.assert_array_equal(npz.read_image_npz(path), some_image(4, 4))
            except DataError as err:
                assert str(path) in str(err)


def test_read_image_npz_refuses_a_file_that_is_missing_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(
        DataError, match=r"a\.npz: not a readable npz file \(No such file or directory\); make it again"
    ):
        npz.read_image_npz(path)
    with path.open("wb") as stream:
        stream.truncate(npz.MAX_IMAGE_BYTES * 2)  # sparse
    with pytest.raises(DataError, match=r"more than the .* expected at most"):
        npz.read_image_npz(path)


def test_read_result_npz_refuses_a_decompression_bomb(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    np.savez_compressed(path, output_0=np.zeros((1, (npz.MAX_RESULT_BYTES >> 2) + (1 << 20)), np.float32))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"output_0 claims .* bytes, more than the 67108864 expected at most"):
        npz.read_result_npz(path)


def test_is_image_of_holds_only_for_the_same_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert not npz.is_image_of(path, (10, 10**18))
    npz.write_image_npz(path, some_image(), (10, 10**18))
    assert npz.is_image_of(path, (10, 10**18))
    assert not npz.is_image_of(path, (10, 10**18), decoded_as=PreprocessAs.PADDLECLAS)
    assert not npz.is_image_of(path, (11, 10**18))
    assert not npz.is_image_of(path, (10, 10**18 + 1))
    npz.write_image_npz(path, some_image())
    assert not npz.is_image_of(path, (10, path.stat().st_mtime_ns))


@pytest.mark.parametrize("image", [np.zeros((3, 2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2), np.uint8)])
def test_write_image_npz_refuses_another_array(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image: expected uint8 \[3, H, W\], got "):
        npz.write_image_npz(tmp_path / "a.npz", image)
    assert not list(tmp_path.iterdir())


def test_result_npz_is_read_back_and_by_numpy(tmp_path: Path) -> None:
    output = np.random.default_rng(0).random((1, 1000), np.float32)
    npz.write_result_npz(tmp_path / "r.npz", output)
    np.testing.assert_array_equal(npz.read_result_npz(tmp_path / "r.npz"), output)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["output_0"], output)
    with pytest.raises(ValueError, match=r"result: expected float32 \[1, classes\], got float64 \[1, 2\]"):
        npz.write_result_npz(tmp_path / "r.npz", np.zeros((1, 2)))  # type: ignore[arg-type]


def test_read_result_npz_names_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    np.savez(path, output_0=np.zeros(1000, np.float32))
    with pytest.raises(DataError) as caught:
        npz.read_result_npz(path)
    assert str(caught.value) == (
        f"{path}: expected output_0 float32 [1, classes], found float32 [1000]; run bench again"
    )


def test_datalist_is_read_back_in_order_with_relative_lines_from_its_folder(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.npz", "a.npz", "späte Nacht.npz")]
    for path in paths:
        path.touch()
    datalist = tmp_path / "list.txt"
    npz.write_datalist(datalist, paths)
    assert datalist.read_text(encoding="utf-8").splitlines() == [str(path) for path in paths]
    assert npz.read_datalist(datalist) == paths
    datalist.write_text("\na.npz\r\n\n" + str(paths[0]), encoding="utf-8")
    assert npz.read_datalist(datalist) == [paths[1], paths[0]]


def test_read_datalist_names_lines_when_files_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    datalist = tmp_path / "list.txt"
    datalist.write_text("a.npz\nb.npz\n\nc.npz\nd.npz\ne.npz\n")
    with pytest.raises(DataError) as caught:
        npz.read_datalist(datalist)
    assert str(caught.value) == (
        f"{datalist}: 4 of 5 files are missing: {tmp_path}/b.npz (line 2), {tmp_path}/c.npz (line 4),"
        f" {tmp_path}/d.npz (line 5), ...; run image2npz again"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "{}: cannot be read (No such file or directory); give an existing list file"),
        (" \n\n", "{}: names no files; make it by image2npz"),
        ("a.npz\n./a.npz\n", "{}:2: {folder}/a.npz stands in line 1 already; remove one of them"),
    ],
)
def test_read_datalist_says_what_is_wrong(tmp_path: Path, text: str | None, message: str) -> None:
    datalist = tmp_path / "list.txt"
    if text is not None:
        datalist.write_text(text)
    with pytest.raises(DataError) as caught:
        npz.read_datalist(datalist)
    assert str(caught.value) == message.format(datalist, folder=tmp_path)


@pytest.mark.parametrize("library", PreprocessAs)
def test_find_decoding_returns_what_image2npz_kept(tmp_path: Path, library: PreprocessAs) -> None:
    image = np.zeros((3, 4, 5), np.uint8)
    npz.write_image_npz(tmp_path / "stamped.npz", image, (10, 20), decoded_as=library)
    npz.write_image_npz(tmp_path / "plain.npz", image)
    assert npz.find_decoding(tmp_path / "stamped.npz") is library
    assert npz.find_decoding(tmp_path / "plain.npz") is None
    assert npz.find_decoding(tmp_path / "gone.npz") is None
