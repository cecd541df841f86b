"""Image files in a folder, or in a tar that is read by offset without unpacking it."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from pipeline.data import containers
from pipeline.data.storage import Location, Url, absolute
from pipeline.errors import DataError, in_a_line

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_IMAGE_FILE_BYTES = 256 << 20  # the largest of ImageNet has 15 MB
_MAX_TAR_READ_BYTES = 64 << 20  # tarfile reads extended headers at the size they claim
_FOLDER_LEVELS = 3  # split, class, image
_NO_FOLDERS = frozenset({"__MACOSX", "@eaDir"})  # what macOS adds to archives, and Synology to folders of images

_gzip_lock = threading.Lock()  # a gzip stream has one position


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A file in a folder, or a member of a tar. Small and picklable, so that a worker process can open it."""

    root: Location  # absolute: the folder or the tar
    name: str  # below the root, parts joined by "/"
    offset: int | None = (
        None  # where the content starts in the (uncompressed) tar, in bytes; None: the root is a folder
    )
    size: int = 0  # bytes, of a tar member or an object
    mtime_ns: int = 0  # of an object, as it was listed

    def __str__(self) -> str:
        return f"{self.root}/{self.name}" if self.offset is None else f"{self.root}:{self.name}"

    @property
    def folder(self) -> str:
        """The name of the folder that holds it; an image in the root counts as held by a folder of the root's name."""
        parents = self.name.split("/")[:-1]
        if parents:
            return parents[-1]
        return self.root.name if self.offset is None else strip_tar_suffix(self.root.name)

    def content(self) -> Path | bytes:
        """Return what `preprocess.decode` takes: the path of a file, the bytes of a tar member."""
        place = self.root / self.name
        return place if self.offset is None and isinstance(place, Path) else self.read()

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DataError: it is gone, was cut short, or is larger than MAX_IMAGE_FILE_BYTES.
        """
        try:
            content = self._read_file() if self.offset is None else self._read_member(self.offset)
        except (OSError, EOFError, zlib.error) as err:
            reason = err.strerror if isinstance(err, OSError) and err.strerror else err
            raise DataError(f"{self}: cannot be read ({reason})") from err
        if len(content) > MAX_IMAGE_FILE_BYTES:
            raise DataError(f"{self}: larger than {MAX_IMAGE_FILE_BYTES >> 20} MiB, so not taken for an image")
        if self.offset is not None and len(content) != self.size:
            raise DataError(
                f"{self}: expected {self.size} bytes, found {len(content)}; the tar was changed or cut short"
            )
        return content

    def stamp(self) -> tuple[int, int]:
        """Return (bytes, modification time in ns). Two equal stamps of one name are taken for the same image."""
        if isinstance(self.root, Url):
            return self.size, self.mtime_ns
        try:
            status = (self.root / self.name if self.offset is None else self.root).stat()
        except OSError as err:
            raise DataError(f"{self}: cannot be read ({err.strerror})") from err
        return (status.st_size if self.offset is None else self.size), status.st_mtime_ns

    def _read_file(self) -> bytes:
        place = self.root / self.name
        if isinstance(place, Url):
            return place.read_bytes(MAX_IMAGE_FILE_BYTES + 1)
        with place.open("rb") as stream:
            return stream.read(MAX_IMAGE_FILE_BYTES + 1)

    def _read_member(self, offset: int) -> bytes:
        assert isinstance(self.root, Path)  # a tar is never taken from a store
        wanted = min(self.size, MAX_IMAGE_FILE_BYTES + 1)
        if not _is_gzip(self.root):
            with self.root.open("rb") as stream:
                stream.seek(offset)
                return stream.read(wanted)
        with _gzip_lock:
            unpacked = _gzip_stream(self.root, self.root.stat().st_mtime_ns)
            unpacked.seek(offset)
            return unpacked.read(wanted)


@dataclass(frozen=True)
class Listing:
    """What lies below a folder or in a tar, sorted by name, without hidden files."""

    root: Location
    files: tuple[ImageSource, ...]
    folders: tuple[str, ...]  # names below the root, parts joined by "/"
    deeper: tuple[str, ...] = ()  # folders that are not empty and were not looked into

    @property
    def in_tar(self) -> bool:
        return isinstance(self.root, Path) and not self.root.is_dir()


def is_tar(path: Location) -> bool:
    return path.name.lower().endswith(TAR_SUFFIXES)


def strip_tar_suffix(name: str) -> str:
    for suffix in TAR_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def scan(path: Location) -> Listing:
    """List a folder, three levels deep (of a store, at any depth), or a tar.

    The list of a tar is kept in memory, so listing it again costs nothing.

    Raises:
        DataError: there is no such folder or tar, or the tar is damaged or holds links or names that leave it.
    """
    path = absolute(path)
    if isinstance(path, Url):
        return _scan_store(path)
    if path.is_dir():
        return _scan_folder(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or tar; give the folder of the images")
    if not is_tar(path):
        what = containers.describe(path.name)
        wanted = f"expected a folder or one of {', '.join(TAR_SUFFIXES)}, found another file"
        raise DataError(f"{path}: {what or wanted}")
    status = path.stat()
    return _scan_tar(path, status.st_size, status.st_mtime_ns)


def _scan_store(root: Url) -> Listing:
    if is_tar(root):
        raise DataError(f"{root}: a tar is read where it lies on a disk; copy it there, or give a folder of images")
    found = {name: stamp for name, stamp in root.files(deep=True).items() if not _is_hidden(name)}
    if not found:
        raise DataError(f"{root}: no files below it; give the folder of the images")
    for name in found:
        _check_printable(root, name)
    folders = sorted({name.rpartition("/")[0] for name in found} - {""})
    files = (ImageSource(root, name, size=size, mtime_ns=mtime_ns) for name, (size, mtime_ns) in found.items())
    return Listing(root, tuple(files), tuple(folders))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in _NO_FOLDERS for part in name.split("/"))


def _scan_folder(root: Path) -> Listing:
    files: list[str] = []
    folders: list[str] = []
    deeper: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    name = f"{prefix}{entry.name}"
                    if entry.name.startswith(".") or entry.name in _NO_FOLDERS:
                        continue
                    if entry.is_dir():
                        folders.append(name)
                        if name.count("/") + 1 < _FOLDER_LEVELS:
                            pending.append(f"{name}/")
                        elif _is_filled(Path(entry.path)):
                            deeper.append(name)
                    elif entry.is_file():
                        files.append(name)
        except OSError as err:
            raise DataError(f"{root / prefix}: cannot be listed ({err.strerror})") from err
    for name in files:
        _check_printable(root, name)
    sources = tuple(ImageSource(root, name) for name in sorted(files))
    return Listing(root, sources, tuple(sorted(folders)), tuple(sorted(deeper)))


def _is_filled(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:  # not ours to read
        return True


@lru_cache(maxsize=4)
def _scan_tar(path: Path, size: int, mtime_ns: int) -> Listing:
    """List a tar; size and time are part of the key, so that a changed tar is listed again."""
    try:
        with _open_tar_stream(path) as stream:
            files = list(_tar_files(path, _BoundedReads(stream)))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as err:
        raise DataError(f"{path}: not a readable tar ({in_a_line(err)}); fetch or pack it again") from err
    if not _is_gzip(path) and any((file.offset or 0) + file.size > size for file in files):
        raise DataError(f"{path}: cut short; fetch or pack it again")
    files.sort(key=lambda file: file.name)
    folders = {file.name.rpartition("/")[0] for file in files} - {""}
    return Listing(path, tuple(files), tuple(sorted(folders)))


def _tar_files(
    path: Path, stream: _BoundedReads, base: int = 0, prefix: str = "", nested: bool = False
) -> Iterator[ImageSource]:
    """Yield the files of a tar, those of the tars in it under the inner tar's name (ILSVRC2012_img_train.tar)."""
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (member := archive.next()) is not None:
            name = _checked_name(path, prefix, member)
            if name is None:
                continue
            start = base + member.offset_data
            if not nested and name.lower().endswith(".tar"):
                inner = archive.extractfile(member)
                assert inner is not None  # a regular file always opens
                yield from _tar_files(path, _BoundedReads(inner), start, f"{strip_tar_suffix(name)}/", nested=True)
            else:
                yield ImageSource(path, name, start, member.size)


def _checked_name(path: Path, prefix: str, member: tarfile.TarInfo) -> str | None:
    """Return the normal form of a member's name; None for folders and hidden files."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise DataError(f"{path}: member {member.name!r} lies outside the tar; do not use this file")
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.isdir() or not parts or any(part.startswith(".") for part in parts):
        return None
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: member {member.name!r} is a link or a special file; pack the images themselves")
    name = prefix + "/".join(parts)
    _check_printable(path, name)
    return name


def _check_printable(root: Location, name: str) -> None:
    """Raise where a name holds a control character: lists have one image per line."""
    if any(ord(letter) < 32 for letter in name):
        raise DataError(f"{root}: file name {name!r} holds a control character; rename the file")


def _is_gzip(path: Path) -> bool:
    return not path.name.lower().endswith(".tar")


def _open_tar_stream(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if _is_gzip(path) else path.open("rb")  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _gzip_stream(path: Path, mtime_ns: int) -> IO[bytes]:
    """Keep the stream open: reading forward is cheap, going back starts over. The time detects a new file."""
    return _open_tar_stream(path)


class _BoundedReads(io.RawIOBase):
    """A stream that raises where more is read at once than a header may need."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MAX_TAR_READ_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
