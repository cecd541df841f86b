"""Downloads, from a server on loopback that can be told to misbehave."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.models import zoo
from pipeline.weights import downloads, published

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at any path, with ranges and an ETag unless told otherwise."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.tag = '"one.1"'
        self.date = ""
        self.ranges = True
        self.honours_if_range = True
        self.tells_length = True
        self.cuts: list[int] = []  # bytes after which a connection ends, of the next ones
        self.status = 0  # answered instead of the file
        self.location = ""
        self.asked: list[str | None] = []  # the range of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/net-{DIGEST[:8]}.pth"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that leaves is part of the tests


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, begin, status = self.server, 0, 200
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_response(server.status)
            if server.location:
                self.send_header("Location", server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        fresh = self.headers.get("If-Range") in (None, server.tag, server.date) or not server.honours_if_range
        if asked and server.ranges and fresh:
            begin, status = int(asked[len("bytes=") : -1]), 206
            if begin >= len(server.content):
                self.send_error(416)
                return
        self.send_response(status)
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.date:
            self.send_header("Last-Modified", server.date)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        if server.tells_length:
            self.send_header("Content-Length", str(len(server.content) - begin))
        self.end_headers()
        end = begin + server.cuts.pop(0) if server.cuts else len(server.content)
        self.wfile.write(server.content[begin:end])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "_PAUSES_S", (0.0, 0.0))
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def get(server: Server, folder: Path) -> Path:
    return downloads.download(server.url, DIGEST[:8], folder)


def error_of(server: Server, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        get(server, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_off(server: Server, folder: Path, after: int) -> Path:
    """Leave a half file, as a download whose connections all end leaves it."""
    server.cuts = [after, 0, 0]
    error_of(server, folder)
    server.asked.clear()
    (partial,) = folder.iterdir()
    assert partial.name.endswith(".partial")
    assert partial.read_bytes() == server.content[:after]
    return partial


def test_download_gives_the_whole_file(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "cache" / "timm")
    assert path == tmp_path / "cache" / "timm" / f"net-{DIGEST[:8]}.pth"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [path.name]


def test_download_asks_for_nothing_when_the_file_is_there(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    get(server, tmp_path)
    assert server.asked == [None]


def test_download_fetches_again_when_the_file_there_is_damaged(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path)
    path.write_bytes(b"damaged")
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("tells_length", [True, False])
def test_download_works_when_the_length_is_not_told(server: Server, tmp_path: Path, tells_length: bool) -> None:
    server.tells_length = tells_length
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_download_goes_on_by_itself_when_a_connection_ends(server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000, 100_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=400000-"]


@pytest.mark.parametrize(
    ("tag", "date"), [('"one.1/+%"', ""), ("", "Wed, 21 Oct 2015 07:28:00 GMT"), ("", ""), ('W/"weak"', "")]
)
def test_download_goes_on_where_it_was_in_the_next_run(server: Server, tmp_path: Path, tag: str, date: str) -> None:
    server.tag, server.date = tag, date
    break_off(server, tmp_path, 400_000)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=400000-"]
    assert len(names(tmp_path)) == 1


def test_download_says_how_to_go_on_when_every_connection_ends(server: Server, tmp_path: Path) -> None:
    server.cuts = [400_000, 0, 0]
    assert error_of(server, tmp_path) == (
        f"{server.url}: the connection broke after 400000 bytes (400000 of 1048576 bytes came); run the same command "
        "again to resume, or download it by hand and give the file as the weights"
    )


def test_download_starts_again_when_the_server_ignores_ranges(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path, 400_000)
    server.ranges = False
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("tag", ['"two"', ""])
def test_download_starts_again_when_the_file_has_changed(
    server: Server, tmp_path: Path, honours_if_range: bool, tag: str
) -> None:
    server.content = bytes(len(CONTENT) + 7)
    break_off(server, tmp_path, 400_000)
    server.content, server.tag, server.honours_if_range = CONTENT, tag, honours_if_range
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(names(tmp_path)) == 1


def test_download_starts_again_when_the_file_has_become_shorter(server: Server, tmp_path: Path) -> None:
    server.tag, server.content = "", bytes(2 * len(CONTENT))
    break_off(server, tmp_path, len(CONTENT) + 5)
    server.content = CONTENT
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_download_asks_for_nothing_when_the_partial_is_whole(server: Server, tmp_path: Path) -> None:
    partial = break_off(server, tmp_path, 400_000)
    partial.write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_download_removes_what_came_when_its_hash_is_another(server: Server, tmp_path: Path) -> None:
    server.content = b"another file"
    found = hashlib.sha256(b"another file").hexdigest()[:8]
    assert error_of(server, tmp_path) == (
        f"{server.url}: sha256 is {found}, wanted {DIGEST[:8]}; what came is removed, as it was changed or damaged: "
        "try again, or download it by hand and give the file as the weights"
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (503, "Service Unavailable")])
def test_download_says_what_the_server_answered(server: Server, tmp_path: Path, status: int, reason: str) -> None:
    server.status = status
    assert error_of(server, tmp_path) == (
        f"{server.url}: the server answered {status} {reason}; try again later, or download it by hand and give the "
        "file as the weights"
    )
    assert names(tmp_path) == []


def test_download_keeps_the_partial_when_the_server_is_down(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path, 400_000)
    server.status = 503
    error_of(server, tmp_path)
    server.status = 0
    server.asked.clear()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=400000-"]


def test_download_says_what_to_do_when_there_is_no_network(server: Server, tmp_path: Path) -> None:
    free = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = free.server_address[1]
    free.server_close()
    url = f"http://127.0.0.1:{port}/net.pth"
    with pytest.raises(DataError) as caught:
        downloads.download(url, DIGEST, tmp_path)
    assert str(caught.value) == (
        f"{url}: cannot be reached (Connection refused); check the network, or download it by hand and give the file "
        "as the weights"
    )
    assert names(tmp_path) == []


def test_download_leaves_only_the_partial_when_it_is_interrupted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, blocks = downloads._read, 0

    def read_twice(response: Any) -> bytes:
        nonlocal blocks
        blocks += 1
        if blocks == 3:
            raise KeyboardInterrupt
        return read(response)

    monkeypatch.setattr(downloads, "_read", read_twice)
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path)
    (name,) = names(tmp_path)
    assert name.startswith(f"net-{DIGEST[:8]}.pth.") and name.endswith(".partial")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={2 * downloads._CHUNK}-"]


def test_download_follows_redirects_to_secure_addresses_only(server: Server, tmp_path: Path) -> None:
    server.status, server.location = 302, "http://192.0.2.1/net.pth"
    assert error_of(server, tmp_path) == (
        "http://192.0.2.1/net.pth: only https addresses are fetched; download it by hand and give the file"
    )
    server.location = "file:///etc/hostname"
    assert "file:///etc/hostname" in error_of(server, tmp_path)


@pytest.mark.parametrize("url", ["http://example.com/net.pth", "ftp://127.0.0.1/net.pth", "file:///net.pth"])
def test_download_refuses_other_addresses_than_https(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="only https addresses are fetched"):
        downloads.download(url, DIGEST, tmp_path)


def test_download_refuses_a_file_that_is_no_checkpoint_by_its_size(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_MAX_BYTES", 1000)
    assert error_of(server, tmp_path) == (
        f"{server.url}: has 1048576 bytes, wanted a checkpoint of at most 1000; check the address"
    )
    server.tells_length = False
    assert error_of(server, tmp_path) == (
        f"{server.url}: sends more than 1000 bytes, no checkpoint does; check the address"
    )


def test_download_says_so_when_the_disk_is_too_small(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    assert error_of(server, tmp_path) == (
        f"{tmp_path}: 1000 bytes are free, {server.url} needs 1048576; free some space, or name another folder in "
        "INT8_PIPELINE_CACHE"
    )


def test_download_says_which_variable_when_the_folder_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = error_of(server, tmp_path / "file" / "timm")
    assert message.startswith(f"{tmp_path}/file")
    assert message.endswith("; fix it, or name another folder in INT8_PIPELINE_CACHE")


@pytest.mark.parametrize("digest", ["", "1234567", "xyz", DIGEST.upper()])
def test_download_needs_a_hash(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="hex digits"):
        downloads.download("https://127.0.0.1/net.pth", digest, tmp_path)


def test_two_downloads_at_once_fetch_the_file_once(server: Server, tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(get(server, tmp_path).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 3
    assert server.asked == [None]


def test_fetch_keeps_each_librarys_files_apart(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INT8_PIPELINE_CACHE", str(tmp_path))
    row = dataclasses.replace(zoo.find_model("timm", "resnet18"), url=server.url, sha256=DIGEST)
    assert published.fetch(row, "--weights") == tmp_path / "timm" / f"net-{DIGEST[:8]}.pth"
