"""What `predict` takes: files, folders, URLs, Pillow images and arrays."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config.choices import PreprocessAs
from pipeline.data import npz, preprocess
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.preprocess import Pixels
from pipeline.data.sources import MAX_IMAGE_FILE_BYTES
from pipeline.data.storage import Location, Url, location
from pipeline.errors import DataError

ImageLike: TypeAlias = "str | os.PathLike[str] | Url | Image.Image | npt.NDArray[np.uint8]"

_NPZ = ".npz"
SUFFIXES = IMAGE_SUFFIXES | {_NPZ}
# Pillow loads an opened image when it is first used. The same one may be in two batches, which load in two threads.
_LOADING = tuple(threading.Lock() for _ in range(64))


def decode(image: ImageLike, preprocess_as: PreprocessAs = PreprocessAs.TORCHVISION) -> Pixels:
    """Return the pixels of one image, uint8 [3, H, W], RGB.

    Args:
        image: a path or URL of what Pillow reads or of an npz of `image2npz`, a Pillow image, or an array.
        preprocess_as: as of `preprocess.decode`.

    Raises:
        DataError: it cannot be read, or an array is not uint8 [H, W, 3].
    """
    if isinstance(image, str | os.PathLike | Url):
        place = location(image)
        try:
            return _decode_file(place, preprocess_as)
        except DataError as err:  # whose text names the file, but not as the user did where that was ./x.jpg
            raise DataError(str(err).removeprefix(f"{place}: ")) from err
    if isinstance(image, Image.Image):
        with _LOADING[id(image) // 64 % len(_LOADING)]:
            return preprocess.from_pillow(image, preprocess_as)
    array = np.asarray(image)
    if array.dtype == object:
        raise DataError(f"expected a path, URL, Pillow image or uint8 [H, W, 3], got {type(image).__name__}")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(f"expected uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _decode_file(place: Location, preprocess_as: PreprocessAs) -> Pixels:
    if place.suffix.lower() == _NPZ:
        return npz.read_image_npz(place)
    content = place if isinstance(place, Path) else place.read_bytes(MAX_IMAGE_FILE_BYTES)
    return preprocess.decode(content, preprocess_as)


def name_images(images: ImageLike | Iterable[ImageLike]) -> Iterator[tuple[str, ImageLike]]:
    """Yield each image with its name: a file's path as given, those in a folder for the folder, "image 3" for others.

    Args:
        images: one image, a folder of them, or several of either.

    Raises:
        DataError: a folder holds no images.
        TypeError: `images` is nothing of the kind.
    """
    for number, image in enumerate(_list(images), start=1):
        if not isinstance(image, str | os.PathLike | Url):
            yield f"image {number}", image
        elif _is_folder(image):
            yield from ((str(each), each) for each in find_images([location(image)]))
        else:
            yield str(image) if isinstance(image, Url) else os.fspath(image), image


def _list(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Return several images as they are, and a single one in a list."""
    if isinstance(images, str | os.PathLike | Url | Image.Image):
        return [images]
    if hasattr(images, "__array__"):  # NumPy's, and those of other libraries on CPU
        array = np.asarray(images)
        return list(array) if array.ndim == 4 else [array]
    if isinstance(images, Iterable) and not isinstance(images, bytes | bytearray | memoryview):
        return images
    raise TypeError(
        f"images: expected a path, URL, Pillow image, array, or several of these, got {type(images).__name__}"
    )


def _is_folder(image: str | os.PathLike[str] | Url) -> bool:
    place = location(image)
    if isinstance(place, Url):  # a store takes its time to answer, and need not be asked of what is called x.jpg
        return place.suffix.lower() not in SUFFIXES and place.is_dir()
    return os.path.isdir(place)  # noqa: PTH112  Path.is_dir raises where a name is too long


def find_images(places: Sequence[Location]) -> list[Location]:
    """Return files as they are and the images below folders, in order of their names.

    Raises:
        DataError: a path is not there, or a folder holds no image.
    """
    found: list[Location] = []
    for place in places:
        if place.is_dir():
            below = _list_below(place)
            if not below:
                raise DataError(f"{place}: no images in this folder (of {', '.join(sorted(SUFFIXES))})")
            found += below
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"{place}: no such file")
    return found


def _list_below(folder: Location) -> Sequence[Location]:
    if isinstance(folder, Url):
        return [folder / name for name in folder.files(deep=True) if Path(name).suffix.lower() in SUFFIXES]
    return sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
