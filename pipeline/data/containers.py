"""Files that hold many images, which are not read here: what they are by their names, and what to do with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_OUT = "write its images to files, one folder for each class, and give the folder of these"
_PARQUET = (
    "a Parquet or Arrow table, as of Hugging Face's data sets; write its images to files, one folder for each class "
    "(row['image'].save(...) of the datasets library), and give the folder of these"
)
_NAMES = {
    r"\.(zip|7z|rar)": "a {suffix} archive; unpack it and give the folder of the images",
    r"\.(tar|tar\.gz|tgz)": "a tar; give that itself, or unpack all of them into one folder",
    r"\.(tar\.(bz2|xz|zst)|tbz2|txz)": "a tar of another compression than gzip; unpack it and give the folder",
    r"\.(parquet|arrow)": _PARQUET,
    r"\.tfrecords?(-\d+-of-\d+)?|\.tfrec": f"TFRecord; {_OUT}",
    r"\.(h5|hdf5)": f"HDF5; {_OUT}",
    r"\.(npz|npy|mat)": f"arrays; {_OUT}",
    r"\.(rec|beton|mdb|lmdb)": f"one file of many images, of a training framework; {_OUT}",
    r"-ubyte(\.gz)?": f"MNIST's format; {_OUT}",
    r"(^|/)(data_batch_\d|test_batch)(\.bin)?": f"CIFAR's format; {_OUT}",
    r"\.(mp4|avi|mov|mkv|webm)": "a film; write frames of it to files and give the folder of these",
}
_WEBDATASET = (".cls", ".cls.txt")


def describe(name: str) -> str | None:
    """Return what a file is and what to do, to complete a message that begins with its name; None: not known."""
    for pattern, what in _NAMES.items():
        if (match := re.search(f"({pattern})$", name.lower())) is not None:
            return f"is {what.format(suffix=match[0].strip('.'))}"
    return None


def describe_first(names: Iterable[str]) -> str | None:
    """Return the first file of a folder that holds images otherwise than as files, and what to do; None: none does."""
    found = ((name, describe(name)) for name in sorted(names))
    return next((f"{name} {what}" for name, what in found if what is not None), None)


def find_labels(names: Sequence[str]) -> list[str]:
    """Return the files that hold the label of the image of the same name, as in tars of webdataset, which are not read.

    Args:
        names: of all files below the root.
    """
    return [name for name in names if name.lower().endswith(_WEBDATASET)]
