"""A file from the web: fetched once into a folder, verified by its hash, resumed after an interruption.

The standard library's client is enough here: one GET with a range, and it takes proxies and certificates from the
environment.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, unquote, urlsplit

from pipeline.artefacts import file_digest
from pipeline.errors import DataError
from pipeline.host.locks import exclusive
from pipeline.host.user_cache import FOLDER_VARIABLE
from pipeline.terminal.progress import progress_bar

_CHUNK = 1 << 18  # bytes read at a time
_MAX_BYTES = 4 << 30  # larger than any checkpoint of the table: an endless response must not fill the disk
_TIMEOUT_S = 30.0  # without a byte
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # before each further attempt after a broken connection
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST_NAME = 255  # bytes of a file name, on the file systems in use
_BY_HAND = "or download it by hand and give the file as the weights"


def _target(url: str, folder: Path) -> Path:
    return folder / PurePosixPath(urlsplit(url).path).name


def is_there(url: str, sha256: str, folder: Path) -> bool:
    """Tell whether the file of `url` is in `folder`, whole; `sha256` as for `download`."""
    target = _target(url, folder)
    return target.is_file() and file_digest(target).startswith(sha256)


def download(url: str, sha256: str, folder: Path) -> Path:
    """Return the file of `url` in `folder`, fetched if it is not there.

    An interrupted download leaves `<file>.<version>.partial`, and the next one resumes it if the server still has that
    version, by ETag, date or size.

    Args:
        sha256: of the file in hex, or its first 8 digits or more.

    Raises:
        DataError: it cannot be fetched or written, or its hash is another.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise ValueError(f"sha256 of 8 to 64 hex digits wanted, got {sha256!r}")
    _check_address(url)
    target = _target(url, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            if not is_there(url, sha256, folder):
                partial = _partial(target)  # may be complete, if a process ended just before the next two steps
                if partial is None or not file_digest(partial).startswith(sha256):
                    partial = _transfer(url, target)
                _check_digest(partial, sha256, url)
                partial.replace(target)
    except OSError as err:
        raise DataError(
            f"{err.filename or folder}: {err.strerror or err}; fix it, or name another folder in {FOLDER_VARIABLE}"
        ) from None
    return target


def _check_digest(partial: Path, sha256: str, url: str) -> None:
    found = file_digest(partial)
    if not found.startswith(sha256):
        partial.unlink()
        raise DataError(
            f"{url}: sha256 is {found[: len(sha256)]}, wanted {sha256}; what came is removed, as it was changed or "
            f"damaged: try again, {_BY_HAND}"
        )


class _BrokenError(Exception):
    """The connection failed or ended early."""

    def __init__(self, reason: object, *, reached: bool = True) -> None:
        super().__init__(str(reason))
        self.reached = reached


def _transfer(url: str, target: Path) -> Path:
    """Fetch the whole of `url`, in as many connections as it takes; return the file beside `target` that holds it."""
    for attempt, pause_s in enumerate((*_PAUSES_S, None)):
        try:
            return _attempt(url, target)
        except _BrokenError as err:
            if not err.reached and attempt == 0:
                raise DataError(f"{url}: cannot be reached ({err}); check the network, {_BY_HAND}") from None
            if pause_s is None:
                partial = _partial(target)
                done = partial.stat().st_size if partial else 0
                raise DataError(
                    f"{url}: the connection broke after {done} bytes ({err}); run the same command again to resume, "
                    f"{_BY_HAND}"
                ) from None
            time.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _attempt(url: str, target: Path) -> Path:
    """Fetch what is missing over one connection."""
    partial = _partial(target)
    with _open(url, partial) as response:
        answer = _Answer.read(response)
        if answer.begin and (
            partial is None or answer.begin != partial.stat().st_size or answer.version != _of(partial)
        ):
            if partial is not None:
                partial.unlink()  # the file has changed since: the old partial file is useless
            raise _BrokenError("the file changed at its source")
        if not answer.begin:
            if partial is not None:
                partial.unlink()
            partial = _partial_path(target, answer.version)
        assert partial is not None
        if answer.total is not None:
            _check_size(url, answer.total, answer.begin, target.parent)
        _receive(response, partial, answer, url)
    return partial


@dataclass(frozen=True)
class _Answer:
    """What the server says of the file."""

    begin: int  # where the bytes that it sends begin
    total: int | None  # bytes of the whole file
    version: str  # the ETag, else the date, else the size; empty where there is none of them

    @classmethod
    def read(cls, response: http.client.HTTPResponse) -> _Answer:
        begin, total = 0, response.headers.get("Content-Length")
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not found:
                raise _BrokenError("the server answered with an invalid Content-Range")
            begin, total = int(found[1]), found[2]
        tag = response.headers.get("ETag", "")
        # A weak tag may stay the same while bytes change.
        version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        size = int(total) if total and total.isdecimal() else None
        return cls(begin, size, version or (f"{size} bytes" if size is not None else ""))


def _partial_path(target: Path, version: str) -> Path:
    """Return the path of a partial file. Its name holds the version, so that it is known however this process ends."""
    escaped = quote(version, safe="").replace(".", "%2E")
    path = target.with_name(f"{target.name}.{escaped}.partial")
    return path if len(os.fsencode(path.name)) <= _LONGEST_NAME else _partial_path(target, "")


def _of(partial: Path) -> str:
    """Return the version that a partial file is of."""
    return unquote(partial.name.removesuffix(".partial").rpartition(".")[2])


def _partial(target: Path) -> Path | None:
    """Return the partial file of `target` to resume; remove those that cannot be resumed."""
    found = sorted(path for path in target.parent.iterdir() if _is_partial(path, target))
    usable = [path for path in found if _of(path) and path.stat().st_size]
    for path in found:
        if path not in usable[:1]:
            path.unlink()
    return usable[0] if usable else None


def _is_partial(path: Path, target: Path) -> bool:
    return path.name.startswith(f"{target.name}.") and path.name.endswith(".partial")


def _open(url: str, partial: Path | None) -> http.client.HTTPResponse:
    """Ask for the file, from where `partial` ends."""
    request = urllib.request.Request(url, headers={"User-Agent": "int8-pipeline", "Accept-Encoding": "identity"})
    if partial is not None:
        request.add_header("Range", f"bytes={partial.stat().st_size}-")
        if not _of(partial).endswith(" bytes"):
            request.add_header("If-Range", _of(partial))
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as err:
        err.close()
        if err.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and partial is not None:
            partial.unlink()  # as long as the file, or longer: useless
            raise _BrokenError("the file changed at its source") from None
        raise DataError(f"{url}: the server answered {err.code} {err.reason}; try again later, {_BY_HAND}") from None
    except urllib.error.URLError as err:
        raise _BrokenError(getattr(err.reason, "strerror", None) or err.reason, reached=False) from None
    except (http.client.HTTPException, OSError) as err:
        raise _BrokenError(err or type(err).__name__, reached=False) from None
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses that would be allowed directly."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_address(newurl)
        except DataError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise DataError(f"{url}: only https addresses are fetched; download it by hand and give the file")


def _check_size(url: str, total: int, done: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if total > _MAX_BYTES:
        raise DataError(f"{url}: has {total} bytes, wanted a checkpoint of at most {_MAX_BYTES}; check the address")
    if total - done > free:
        raise DataError(
            f"{folder}: {free} bytes are free, {url} needs {total - done}; free some space, or name another folder in "
            f"{FOLDER_VARIABLE}"
        )


def _receive(response: http.client.HTTPResponse, partial: Path, answer: _Answer, url: str) -> None:
    """Append what the server sends to `partial`."""
    done = answer.begin
    name = PurePosixPath(urlsplit(url).path).name
    with partial.open("ab" if done else "wb") as out, progress_bar(answer.total, name, "B", done, scaled=True) as bar:
        while block := _read(response):
            out.write(block)
            done += len(block)
            bar.update(len(block))
            if done > _MAX_BYTES:
                raise DataError(f"{url}: sends more than {_MAX_BYTES} bytes, no checkpoint does; check the address")
    if answer.total is not None and done < answer.total:
        raise _BrokenError(f"{done} of {answer.total} bytes came")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as err:
        raise _BrokenError(err) from None
