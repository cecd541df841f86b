"""A results folder: one npz a sample, and `run.json`, which says what they are results of.

Result files are named by position and stem (`000007-ILSVRC2012_val_00000008.npz`), so that they sort in datalist order,
and `run.json` sorts after them: scripts that pair sorted file names with datalist lines read the folder as it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts import fingerprint, write_json
from pipeline.errors import DataError
from pipeline.runner import Sample

RUN_FILE = "run.json"
_MAX_RUN_BYTES = 256 << 20
_SUFFIX = ".npz"


@dataclass(frozen=True)
class Run:
    """A finished run: the facts it was started with, and each sample's image with its result file."""

    facts: dict[str, Any]
    samples: tuple[Sample, ...]


@contextlib.contextmanager
def open_run(out: Path, facts: dict[str, Any], images: Sequence[Path]) -> Iterator[list[Sample]]:
    """Yield the samples of a run, ready to be written; the run counts as finished when the body succeeds.

    Results that an interrupted run with the same facts and images left are kept; those of any other run are removed.

    Raises:
        DataError: the folder holds files that no run of ours wrote.
    """
    digits = max(6, len(str(len(images) - 1)))
    names = [f"{index:0{digits}d}-{image.stem}{_SUFFIX}" for index, image in enumerate(images)]
    key = _key(facts, images)
    _make_room(out, key)
    record = {
        **facts,
        "fingerprint": key,
        "finished": False,
        "samples": dict(zip(names, map(str, images), strict=True)),
    }
    write_json(out / RUN_FILE, record)
    yield [Sample(image, out / name) for name, image in zip(names, images, strict=True)]
    write_json(out / RUN_FILE, {**record, "finished": True})


def is_finished(out: Path, facts: dict[str, Any], images: Sequence[Path]) -> bool:
    """Tell whether the folder holds a finished run with these facts over these images as they are now."""
    record = _read_record(out)
    return record is not None and bool(record.get("finished")) and record.get("fingerprint") == _key(facts, images)


def _key(facts: dict[str, Any], images: Sequence[Path]) -> str:
    stamps = [[str(image), image.stat().st_size, image.stat().st_mtime_ns] for image in images]
    return fingerprint(facts, stamps)


def _make_room(out: Path, key: str) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise DataError(f"--path_output {out}: cannot be made a folder ({err.strerror}); give another") from None
    files = [path for path in out.iterdir() if path.suffix == _SUFFIX and not path.name.startswith(".")]
    old = _read_record(out)
    if old is None:
        if any(out.iterdir()):
            raise DataError(
                f"--path_output {out}: holds files that are no results of ours; give an empty or new folder"
            )
        return
    if old.get("fingerprint") == key and not old.get("finished"):
        return
    (out / RUN_FILE).unlink()
    for path in files:
        if path.name in old["samples"]:
            path.unlink()


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_RUN_BYTES:
        raise DataError(f"{path}: larger than {_MAX_RUN_BYTES} bytes, so not a run of ours")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise DataError(f"{path}: not JSON ({err}); remove the folder and run bench again") from None
    if not isinstance(record, dict) or not isinstance(record.get("samples"), dict):
        raise DataError(f"{path}: names no samples; remove the folder and run bench again")
    return record


def read_run(folder: Path, datalist: Sequence[Path] | None) -> Run:
    """Return a finished run.

    Args:
        folder: `--result_path`.
        datalist: `--datalist`; where `run.json` is there, both must name the same samples. Without `run.json` (another
            program wrote the folder) the result files are the datalist's lines in sorted order.

    Raises:
        DataError: there are no results, or they and the datalist do not match one to one.
    """
    if not folder.is_dir():
        raise DataError(f"--result_path {folder}: no such folder; run: python -m pipeline bench --path_output {folder}")
    files = sorted(path for path in folder.iterdir() if path.suffix == _SUFFIX and not path.name.startswith("."))
    record = _read_record(folder)
    if record is None:
        return Run({}, tuple(_pair_by_order(folder, files, datalist)))
    if not record.get("finished"):
        raise DataError(
            f"{folder}: {len(files)} of {len(record['samples'])} results; the run was interrupted, repeat it"
        )
    samples = {name: Path(image) for name, image in record["samples"].items()}
    if datalist is not None and list(samples.values()) != list(datalist):
        odd = next((str(path) for path in datalist if path not in set(samples.values())), "their order differs")
        raise DataError(
            f"{folder}: holds results of {len(samples)} samples, the datalist names {len(datalist)} (first that has no "
            f"result: {odd}); run bench with this --datalist, or eval with {record.get('datalist')}"
        )
    _check_same({path.name for path in files}, set(samples), folder)
    facts = {key: value for key, value in record.items() if key != "samples"}
    return Run(facts, tuple(Sample(image, folder / name) for name, image in samples.items()))


def _check_same(found: set[str], wanted: set[str], folder: Path) -> None:
    missing, strange = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(wanted)} results missing (first: {missing[0]}); run bench again"
        )
    if strange:
        raise DataError(f"{folder}: {len(strange)} results of no sample (first: {strange[0]}); run bench again")


def _pair_by_order(folder: Path, files: Sequence[Path], datalist: Sequence[Path] | None) -> list[Sample]:
    if not files:
        raise DataError(f"--result_path {folder}: no results (*{_SUFFIX}) in it; run bench with --path_output {folder}")
    if datalist is None:
        raise DataError(f"{folder}: has no {RUN_FILE}, so the order of its results is unknown; give --datalist FILE")
    if len(files) != len(datalist):
        raise DataError(f"{folder}: {len(files)} results for {len(datalist)} samples of the datalist; run it again")
    return [Sample(image, result) for image, result in zip(datalist, files, strict=True)]
