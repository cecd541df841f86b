"""Files by path or by URL. A `Url` is a file or folder of an object store, read and written through fsspec.

It has the part of `pathlib.Path` that the modules of data sets, npz files and results use, so that they handle both
alike. Objects of a store are complete or absent, as our files are. fsspec comes with Ray Data; the store's own package
(s3fs, gcsfs, adlfs, ...) and its credentials are those of the machine that opens the URL.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from pipeline.errors import DataError, in_a_line

REQUESTS_AT_ONCE = 8  # to a store, for each core: a response takes about 50 ms, in which a core decodes several images

Stamp = tuple[int, int]  # bytes, time of change in ns
# What stores call the time of a change, the most reliable name first.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class Url:
    """`s3://bucket/folder/file` and the like."""

    text: str  # without a slash at its end

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str | PurePosixPath) -> Url:
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        return posixpath.basename(self.text)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        return Url(posixpath.dirname(self.text))

    def is_file(self) -> bool:
        return bool(self._ask("isfile"))

    def is_dir(self) -> bool:
        return bool(self._ask("isdir"))

    def exists(self) -> bool:
        return bool(self._ask("exists"))

    def read_bytes(self, limit: int) -> bytes:
        """Return the content, of which at most `limit` bytes are read.

        Raises:
            DataError: it does not exist, or cannot be read.
        """
        with self._told("read"):
            system, path = _open(self)
            content: bytes = system.cat_file(path, start=0, end=limit)
        return content

    def write_bytes(self, content: bytes) -> None:
        """Write an object; it is complete or absent.

        Raises:
            DataError: it cannot be written.
        """
        with self._told("written"):
            system, path = _open(self)
            system.pipe_file(path, content)

    def unlink(self) -> None:
        with self._told("removed"):
            system, path = _open(self)
            system.rm_file(path)

    def files(self, *, deep: bool) -> dict[str, Stamp]:
        """Return the files in a folder, by their names below it, sorted; `deep`, those of its folders too.

        One request lists about a thousand files. A folder that does not exist has none: stores have no folders.
        """
        with self._told("listed"):
            try:
                system, path = _open(self)
                system.invalidate_cache()
                found = system.find(path, maxdepth=None if deep else 1, detail=True)
            except FileNotFoundError:
                return {}
        base = path.rstrip("/") + "/"
        return {name.removeprefix(base): _stamp(info) for name, info in sorted(found.items()) if name.startswith(base)}

    def _ask(self, question: str) -> Any:
        with self._told("read"):
            system, path = _open(self)
            system.invalidate_cache()
            return getattr(system, question)(path)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn what goes wrong into a DataError: the clients of stores raise a dozen types."""
        try:
            yield
        except DataError:
            raise
        except Exception as err:
            raise self._fault(what, err) from err

    def _fault(self, what: str, err: Exception) -> DataError:
        if isinstance(err, FileNotFoundError) and what == "read":
            return DataError(f"{self}: no such file")
        return DataError(f"{self}: cannot be {what} ({in_a_line(err)})")


Location: TypeAlias = "Path | Url"


def location(text: str | os.PathLike[str] | Url) -> Location:
    """Return the location that a path or URL names; `file://` is a path."""
    if isinstance(text, Url):
        return text
    named = os.fspath(text)
    scheme, separator, rest = named.partition("://")
    if not separator or not scheme.isalnum():
        return Path(named)
    return Path(rest) if scheme == "file" else Url(named.rstrip("/"))


def absolute(place: Location) -> Location:
    # Not resolve(): it would follow the links of the user's layout.
    return Path(os.path.abspath(place)) if isinstance(place, Path) else place  # noqa: PTH100


def read_stamps(places: Iterable[Location]) -> Iterator[Stamp | None]:
    """Yield size and time of change of each file, None where there is none; each folder of a store is listed once."""
    listed: dict[Url, dict[str, Stamp]] = {}
    for place in places:
        if isinstance(place, Url):
            if place.parent not in listed:
                listed[place.parent] = place.parent.files(deep=False)
            yield listed[place.parent].get(place.name)
        else:
            try:
                status = place.stat()
            except OSError:
                yield None
            else:
                yield (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def names_in(folder: Location) -> set[str]:
    """Return the names of the files in a folder; none where it is not there."""
    if isinstance(folder, Url):
        return set(folder.files(deep=False))
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _open(url: Url) -> tuple[Any, str]:
    """Return fsspec's file system, which it keeps open, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise DataError(
            f"{url}: object stores are read by fsspec, which is not installed; run: pip install fsspec"
        ) from None
    system, path = url_to_fs(url.text)
    return system, path


def _stamp(info: dict[str, Any]) -> Stamp:
    when = next((info[key] for key in _TIMES if info.get(key) is not None), 0.0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    return int(info.get("size") or 0), int(when * 1e9)
