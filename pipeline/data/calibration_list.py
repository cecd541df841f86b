"""The list of calibration images: a text file from which later stages open the same images again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.artefacts import whole_file
from pipeline.data.imagenet import Sample, make_sample
from pipeline.data.list_files import read_lines
from pipeline.data.sources import ImageSource, scan
from pipeline.errors import DataError

_HEADER = "# calibration images: class index, tab, name below the root; a class that is not known is '-'"
_NO_CLASS = "-"

# Images of the list used for weight rounding: half as many lose little, more gain nothing.
FITTING_IMAGES = 128
# Of these, images that equalization reads of a CNN without gates: factors go with square roots of ranges.
EQUALIZING_IMAGES = 32


def write_calibration_list(samples: Sequence[Sample], path: Path, seed: int | None = None) -> None:
    """Write the list of samples; the file is complete or absent. `read_calibration_list` opens the same images again.

    Args:
        samples: of one data set, at least one.
        path: the text file.
        seed: with which they were chosen, as information.
    """
    root = samples[0].source.root
    if any(sample.source.root != root for sample in samples):
        raise ValueError("samples of several data sets do not make one calibration list")
    header = [_HEADER, f"# root: {root}", f"# count: {len(samples)}"]
    if seed is not None:
        header.append(f"# seed: {seed}")
    lines = (f"{_class_text(sample.class_index)}\t{sample.source.name}" for sample in samples)
    with whole_file(path) as scratch:
        scratch.write_text("\n".join([*header, *lines, ""]), encoding="utf-8", errors="surrogateescape")


def read_calibration_list(path: Path) -> list[Sample]:
    """Return the samples of a list that `write_calibration_list` wrote, in its order.

    Raises:
        DataError: the list is damaged, or its images are not where it says.
    """
    lines = read_lines(path)
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    if "root" not in header or not header.get("count", "").isdigit():
        raise DataError(f"{path}: has no '# root:' and '# count:' lines; make it by calibset")
    entries = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("# ")]
    if len(entries) != int(header["count"]):
        raise DataError(f"{path}: cut short, {len(entries)} of {header['count']} images; make it again by calibset")
    sources = _open_sources(path, Path(header["root"]), [name for _, name in entries])
    return [make_sample(source, index) for (index, _), source in zip(entries, sources, strict=True)]


def choose_evenly(listed: int, wanted: int) -> range:
    """Return the indices of at most `wanted` of the `listed` images, evenly spread over the list."""
    step = max(1, listed // wanted)
    return range(0, min(listed, step * wanted), step)


def _class_text(index: int | None) -> str:
    return _NO_CLASS if index is None else str(index)


def _parse(path: Path, number: int, line: str) -> tuple[int | None, str]:
    index, tab, name = line.partition("\t")
    if not tab or not name or not (index == _NO_CLASS or (index.isascii() and index.isdigit() and len(index) < 10)):
        raise DataError(f"{path}:{number}: expected 'class<TAB>name', found {line[:80]!r}; make it again by calibset")
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{path}:{number}: {name!r} leaves the root folder; do not use this list")
    return (None if index == _NO_CLASS else int(index)), name


def _open_sources(path: Path, root: Path, names: Sequence[str]) -> list[ImageSource]:
    """Return the current location of each image of a list.

    Raises:
        DataError: the root or images are gone.
    """
    if root.is_dir():
        found = {name: ImageSource(root, name) for name in names if (root / name).is_file()}
    elif root.exists():
        found = {file.name: file for file in scan(root).files}
    else:
        raise DataError(f"{path}: the images' root {root} is gone; bring it back, or make the list again by calibset")
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(names)} images are not in {root} (first: {missing[0]});"
            " bring them back, or make the list again by calibset"
        )
    return [found[name] for name in names]
