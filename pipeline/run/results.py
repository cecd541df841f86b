"""A results folder, one npz a sample, and beside it `<folder>.run.json`, which says what they are results of.

Result files are named by position and stem (`000007-ILSVRC2012_val_00000008.npz`), so that they sort in datalist order,
and nothing else is in the folder: scripts that take whatever lies there, sorted, for the answers to a datalist's lines
read it as it is. A record that was moved into its folder, as `run.json`, is found there too.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.artefacts import fingerprint, json_bytes, write_json
from pipeline.data.storage import Location, Url, absolute, location, names_in, read_stamps
from pipeline.errors import DataError
from pipeline.host.cluster import Cluster
from pipeline.host.locks import LockedError, exclusive
from pipeline.run import cluster_runner, runner
from pipeline.run.performance import Performance, Recorder
from pipeline.run.plan import Entry, Plan
from pipeline.terminal.progress import progress_bar

_RUN_FILE = "run.json"
_MAX_RUN_BYTES = 256 << 20
_SUFFIX = ".npz"
_STEM_LENGTH = 50  # characters of an image's name in that of its result: file names end at 255 bytes


@dataclass(frozen=True)
class Run:
    """A finished run: the facts it was started with, and each image with its result file."""

    facts: dict[str, Any]
    entries: tuple[Entry, ...]


def write_results(
    plan: Plan,
    facts: dict[str, Any],
    images: Sequence[Location],
    out: Location,
    what: str,
    cluster: Cluster | None = None,
) -> Performance | None:
    """Infer the images into a results folder, going on where an interrupted run with the same facts stopped.

    Where the images are computed, here or in a cluster, is none of the facts: the results are the same.

    Returns:
        What was measured; None if there was nothing left to do.
    """
    with open_run(out, facts, images) as entries:
        requests = runner.list_unanswered(entries, plan.batch)
        missing = sum(map(len, requests))
        with progress_bar(len(entries), what, "img", done=len(entries) - missing) as progress:
            recorder = Recorder(progress)
            if cluster is None:
                begun = runner.infer_requests(plan, requests, recorder)
            else:
                begun = cluster_runner.infer_requests(cluster, plan, requests, recorder)
        if cluster is not None:
            _remove_scratch(out)  # of workers that died
    return recorder.summarize(begun, steady=False) if recorder.requests else None


@contextlib.contextmanager
def open_run(out: Location, facts: dict[str, Any], images: Sequence[Location]) -> Iterator[list[Entry]]:
    """Yield the entries of a run, ready to be written; the run counts as finished when the body succeeds.

    Results that an interrupted run with the same facts and images left are kept; those of any other run are removed.

    Raises:
        DataError: the folder holds files of other origin, cannot be written, or another run writes there.
    """
    digits = max(6, len(str(len(images) - 1)))
    names = [f"{index:0{digits}d}-{image.stem[:_STEM_LENGTH]}{_SUFFIX}" for index, image in enumerate(images)]
    key = _key(facts, images)
    record = {
        **facts,
        "fingerprint": key,
        "finished": False,
        "samples": dict(zip(names, map(str, images), strict=True)),
    }
    with _sole_writer(out):
        try:
            _make_room(out, key)
        except OSError as err:
            raise DataError(
                f"--path_output {out}: an earlier run's files cannot be removed ({err.strerror}); give another"
            ) from err
        _write_record(out, record)
        yield [Entry(image, out / name) for name, image in zip(names, images, strict=True)]
        _write_record(out, {**record, "finished": True})


def run_file(folder: Location) -> Location:
    """Return where a run writes the record of its results folder: beside it."""
    whole = absolute(folder)  # "." gets a name
    return whole.parent / f"{whole.name}.{_RUN_FILE}"


def check_folder(out: Location) -> None:
    """Raise DataError if a run may not write to `out`, before any work; a folder that does not exist may be made."""
    if out.is_dir():
        _check_ours(out, _read_record(out))
    elif out.exists():
        raise DataError(f"--path_output {out}: is a file; give a folder")


def is_finished(out: Location, facts: dict[str, Any], images: Sequence[Location]) -> bool:
    """Tell whether the folder holds a finished run with these facts over these images as they are now."""
    record = _read_record(out)
    return record is not None and bool(record.get("finished")) and record.get("fingerprint") == _key(facts, images)


def _key(facts: dict[str, Any], images: Sequence[Location]) -> str:
    named = [[str(image), *(stamp or ())] for image, stamp in zip(images, read_stamps(images), strict=True)]
    return fingerprint(facts, named)


@contextlib.contextmanager
def _sole_writer(out: Location) -> Iterator[None]:
    """Hold the folder: two runs at once would remove each other's results. A store has no means to hold one."""
    if isinstance(out, Url):
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = contextlib.ExitStack()
        lock.enter_context(exclusive(out, waits=False))
    except OSError as err:
        raise DataError(f"--path_output {out}: cannot be made a folder ({err.strerror}); give another") from err
    except LockedError as err:
        raise DataError(f"--path_output {out}: another run is writing there; wait for it, or give another") from err
    with lock:
        yield


def _make_room(out: Location, key: str) -> None:
    old = _read_record(out)
    _check_ours(out, old)
    record = run_file(out)
    _remove_scratch(out)
    if isinstance(record, Path):
        for leftover in sorted(record.parent.glob(f".{glob.escape(record.name)}-????????")):
            leftover.unlink()
    if old is None or (old.get("fingerprint") == key and not old.get("finished")):
        return
    for path in _result_files(out):
        path.unlink()
    for path in _records(out):  # last: without it, the folder would no longer be known for ours
        path.unlink()


def _check_ours(out: Location, record: dict[str, Any] | None) -> None:
    """Raise DataError if the folder holds results that `record` does not name, or without a record holds anything."""
    if record is None:
        strange = sorted(name for name in names_in(out) if not _is_scratch(name))
    else:
        strange = [path.name for path in _result_files(out) if path.name not in record["samples"]]
    if strange:
        raise DataError(
            f"--path_output {out}: holds files that bench did not write (first: {strange[0]}); give an empty or "
            "new folder"
        )


def _remove_scratch(out: Location) -> None:
    for leftover in filter(_is_scratch, sorted(names_in(out))):
        (out / leftover).unlink()


def _is_scratch(name: str) -> bool:
    """Tell whether a file is what a killed run was writing (see `artefacts.whole_file`)."""
    return fnmatchcase(name, f".*{_SUFFIX}-????????")


def _result_files(folder: Location) -> list[Location]:
    names = sorted(names_in(folder))
    return [folder / name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]


def _write_record(out: Location, record: dict[str, Any]) -> None:
    try:
        record_file = run_file(out)
        if isinstance(record_file, Path):
            write_json(record_file, record)
        else:
            record_file.write_bytes(json_bytes(record))
    except OSError as err:
        raise DataError(f"{run_file(out)}: cannot be written ({err.strerror}); fix that, then run again") from None


def _records(folder: Location) -> list[Location]:
    return [path for path in (run_file(folder), folder / _RUN_FILE) if folder.is_dir() and path.is_file()]


def _read_record(folder: Location) -> dict[str, Any] | None:
    path = next(iter(_records(folder)), None)
    if path is None:
        return None
    with path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read_bytes(_MAX_RUN_BYTES + 1)) as stream:
        content = stream.read(_MAX_RUN_BYTES + 1)
    if len(content) > _MAX_RUN_BYTES:
        raise DataError(f"{path}: larger than {_MAX_RUN_BYTES} bytes, so not the record of a run")
    try:
        record = json.loads(content.decode("utf-8"))
    except ValueError as err:
        raise DataError(f"{path}: not JSON ({err}); remove it and the folder and run bench again") from None
    if not isinstance(record, dict) or not isinstance(record.get("samples"), dict):
        raise DataError(f"{path}: names no samples; remove it and the folder and run bench again")
    return record


def read_run(folder: Path, datalist: Sequence[Location] | None) -> Run:
    """Return a finished run.

    Args:
        folder: `--result_path`.
        datalist: `--datalist`; where there is a record, both must name the same samples. Without one (another program
            wrote the folder) the result files are the datalist's lines in sorted order.

    Raises:
        DataError: there are no results, or they and the datalist do not match one to one.
    """
    if not folder.is_dir():
        raise DataError(f"--result_path {folder}: no such folder; run: python -m pipeline bench --path_output {folder}")
    files = _result_files(folder)
    record = _read_record(folder)
    if record is None:
        return Run({}, tuple(_pair_by_order(folder, files, datalist)))
    if not record.get("finished"):
        raise DataError(
            f"{folder}: {len(files)} of {len(record['samples'])} results; the run was interrupted, repeat it"
        )
    samples = {name: location(image) for name, image in record["samples"].items()}
    if datalist is not None and list(samples.values()) != list(datalist):
        known = set(samples.values())
        odd = next((f"first that has no result: {path}" for path in datalist if path not in known), None)
        raise DataError(
            f"{folder}: holds results of {len(samples)} samples, the datalist names {len(datalist)} "
            f"({odd or 'some are left out, or their order differs'}); run bench with this --datalist, or eval with "
            f"{record.get('datalist')}"
        )
    _check_same({path.name for path in files}, set(samples), folder)
    facts = {key: value for key, value in record.items() if key != "samples"}
    return Run(facts, tuple(Entry(image, folder / name) for name, image in samples.items()))


def _check_same(found: set[str], wanted: set[str], folder: Path) -> None:
    missing, strange = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(wanted)} results missing (first: {missing[0]}); run bench again"
        )
    if strange:
        raise DataError(f"{folder}: {len(strange)} results of no sample (first: {strange[0]}); run bench again")


def _pair_by_order(folder: Path, files: Sequence[Location], datalist: Sequence[Location] | None) -> list[Entry]:
    if not files:
        raise DataError(f"--result_path {folder}: no results (*{_SUFFIX}) in it; run bench with --path_output {folder}")
    if datalist is None:
        raise DataError(
            f"{folder}: has no {run_file(folder).name} beside it, so the order of its results is unknown; "
            "give --datalist FILE"
        )
    if len(files) != len(datalist):
        raise DataError(f"{folder}: {len(files)} results for {len(datalist)} samples of the datalist; run it again")
    return [Entry(image, result) for image, result in zip(datalist, files, strict=True)]
