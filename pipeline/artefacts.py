"""Artefacts: folders that are complete or absent, and the fingerprints that name them.

A folder is filled beside its target and renamed into place; its manifest goes in last, lists every file with its size
and sha256, and its presence means "valid".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ArtefactError
from pipeline.host.locks import exclusive

MANIFEST = "manifest.json"
STANDARD_OUTPUT = 1  # its descriptor
_CHUNK = 1 << 20  # bytes read at a time when hashing
_MOST_LINKS = 40  # as many as the kernel follows
_MAX_MANIFEST_BYTES = 64 << 20


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(*parts: object) -> str:
    """Return 16 hex digits that change when any part does. Parts are plain data: numbers, strings, lists, mappings."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot enter a fingerprint")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a scratch path; move it to `path` only if the body succeeds.

    A file that is replaced passes its permissions on. A link is followed, so that its target is replaced. What is not
    a regular file (a named pipe, a device, an open descriptor such as /dev/stdout) is not replaced: the bytes are
    written to it when all are there.
    """
    try:
        is_regular = stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:  # usually absent; otherwise creating the scratch file raises the error
        is_regular = True
    if is_regular:
        with _replaced(path) as scratch:
            yield scratch
    elif is_written_through(path):
        with _written_through(path, open_descriptor(path)) as scratch:
            yield scratch
    else:
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        with _replaced(target) as scratch:
            yield scratch


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`, which takes its place, and its permissions, if the body succeeds."""
    # Not tempfile.mkstemp: changing its mode as well takes longer than writing a small file.
    scratch = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        scratch.touch(exist_ok=False)
    except (FileNotFoundError, NotADirectoryError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch(exist_ok=False)
    try:
        yield scratch
        _pass_mode_on(path, scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _pass_mode_on(old: Path, new: Path) -> None:
    try:
        mode = stat.S_IMODE(old.stat().st_mode)
    except OSError:  # absent
        return
    if mode != stat.S_IMODE(new.stat().st_mode):
        new.chmod(mode)


@contextlib.contextmanager
def _written_through(path: Path, descriptor: int | None) -> Iterator[Path]:
    """Yield a scratch path whose content is written to `path`, or to an open descriptor, if the body succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / (path.name or "scratch")
        scratch.touch()
        yield scratch
        if descriptor == STANDARD_OUTPUT:
            sys.stdout.flush()
        # Opening a pipe waits for its reader, as the shell's `>` does.
        target = os.dup(descriptor) if descriptor is not None else os.open(path, os.O_WRONLY)
        with scratch.open("rb") as source, os.fdopen(target, "wb") as sink:
            shutil.copyfileobj(source, sink)


def open_descriptor(path: Path) -> int | None:
    """Return the number of the open descriptor that a path names (/dev/stdout, /dev/fd/3); None for other paths."""
    for _ in range(_MOST_LINKS):
        if path.name.isdecimal() and (path.parent == Path("/dev/fd") or path.parent.resolve() == _own_descriptors()):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _own_descriptors() -> Path:
    return Path("/proc/self/fd").resolve()


def is_written_through(path: Path) -> bool:
    """Tell whether a path is something that a file must not replace: a named pipe, a device, an open descriptor."""
    return open_descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def write_json(path: Path, value: object) -> None:
    """Write plain data as JSON; the file is complete or absent."""
    with whole_file(path) as scratch:
        scratch.write_bytes(json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return plain data as the content of a JSON file."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    # File names that are not UTF-8 hold lone surrogates; replaced by backslashes, they become JSON escapes.
    return f"{text}\n".encode("utf-8", errors="backslashreplace")


def is_published(folder: Path) -> bool:
    """Tell whether a folder has a readable manifest; `verify` compares its files."""
    try:
        read_manifest(folder)
    except ArtefactError:
        return False
    return True


def write_manifest(folder: Path, producer: str) -> None:
    """List every file of `folder` with its size and sha256 in its manifest."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    files.pop(MANIFEST, None)
    write_json(folder / MANIFEST, {"producer": producer, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a published folder.

    Raises:
        ArtefactError: there is none, or it is not one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(f"{folder}: no {MANIFEST}, so it is not a finished artefact; run the build again")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ArtefactError(f"{path}: larger than {_MAX_MANIFEST_BYTES} bytes, so it is not a manifest")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ArtefactError(f"{path}: not JSON ({err}); run the build again") from err
    if not isinstance(manifest, dict) or not _lists_files(manifest.get("files")):
        raise ArtefactError(f"{path}: has no list of files; run the build again")
    return manifest


def _lists_files(files: object) -> bool:
    return isinstance(files, dict) and all(isinstance(entry, dict) for entry in files.values())


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest after checking every file it lists.

    Raises:
        ArtefactError: a file is missing, was changed, or would lie outside the folder.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtefactError(f"{folder / MANIFEST}: file name {name!r} leaves the folder; do not use this package")
        if not path.is_file():
            raise ArtefactError(f"{path}: missing; run the build again, or copy the package folder as a whole")
        size, digest = entry.get("bytes"), entry.get("sha256")
        if path.stat().st_size != size or file_digest(path) != digest:
            raise ArtefactError(f"{path}: changed since the build (sha256 differs); run the build again")
    return manifest


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def whole_folder(out: Path, *, keep_partial: bool = False) -> Iterator[Path]:
    """Yield a scratch folder beside `out`, which takes the place of nothing or an empty folder if the body succeeds.

    Args:
        keep_partial: leave the scratch folder when the body fails, and hand it out again next time. A body that removes
            it itself leaves `out` as it is.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".{out.name}.partial"
    if not keep_partial:
        _remove(scratch)  # of a run that was killed
    scratch.mkdir(exist_ok=True)
    try:
        yield scratch
        if scratch.exists():
            scratch.rename(out)
    except BaseException:
        if not keep_partial:
            shutil.rmtree(scratch, ignore_errors=True)
        raise


@contextlib.contextmanager
def publish(out: Path, producer: str, *, keep_partial: bool = False) -> Iterator[Path]:
    """Yield a scratch folder beside `out`; rename it to `out` only if the body succeeds.

    Args:
        out: the artefact. If an equal build published it meanwhile, theirs is kept: names are content fingerprints.
        producer: written into the manifest.
        keep_partial: leave the scratch folder when the body fails, and hand it out again next time, so that a long
            stage is resumed. Such a body must distinguish complete files from partial ones.

    Two processes that publish the same artefact take turns: the second finds it done.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.parent / f".{out.name}.lock"
    with exclusive(lock, creates=True), whole_folder(out, keep_partial=keep_partial) as scratch:
        yield scratch
        if is_published(out):
            _remove(scratch)
        else:
            write_manifest(scratch, producer)
            _remove(out)  # a folder without a manifest is not an artefact


def install(source: Path, target: Path) -> None:
    """Copy the published folder `source` to `target`, replacing what is there only when the copy is complete.

    Two processes that install to one target take turns, and an equal folder is left as it is: the process that came
    first may be reading it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.parent / f".{target.name}.lock", creates=True):
        if _is_whole_copy(source, target):
            return
        scratch = target.parent / f".{target.name}.partial"
        _remove(scratch)  # of an install that was killed
        try:
            shutil.copytree(source, scratch / "new")
            if target.exists():
                target.rename(scratch / "retired")
            (scratch / "new").rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _is_whole_copy(source: Path, target: Path) -> bool:
    if not is_published(target) or (target / MANIFEST).read_bytes() != (source / MANIFEST).read_bytes():
        return False
    try:
        verify(target)
    except ArtefactError:
        return False
    return True
