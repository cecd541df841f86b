"""HTTP connections: offers of HTTP/2, heads and bodies that trickle or never end, idle clients."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import NAME, TinyWorkspace
from serve_fixtures import Server, answer_of, connect, encoded, request, running

grpc = pytest.importorskip("grpc", reason="serve's packages are not installed: pip install '.[serve]'")
StatusCode = grpc.StatusCode
if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)

pytestmark = pytest.mark.slow
PATIENCE = 1.5  # s
CLASSIFY = f"/v2/models/{NAME}/classify"


@pytest.fixture(scope="module")
def server(tiny_workspace_master: TinyWorkspace) -> Iterator[Server]:
    flags = ["-b", "1", "-i", "1", "--max_body", "1", "--client_timeout", str(PATIENCE)]
    with running(tiny_workspace_master.package, *flags) as server:
        yield server


def data_segments(connection: socket.socket) -> int:
    """Return how many segments with data have arrived (Linux: tcpi_data_segs_in of TCP_INFO)."""
    return int(struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 152)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")
def test_an_answer_is_sent_in_one_piece(server: Server) -> None:
    with connect(server) as connection:
        for number in range(1, 4):
            connection.sendall(request(encoded(0)))
            assert answer_of(connection)[0] == 200
            assert data_segments(connection) == number


def test_a_connection_stays_for_a_further_request(server: Server) -> None:
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(request(encoded(0)))
            assert answer_of(connection)[0] == 200
            time.sleep(6)  # proxies keep theirs for 60 s; uvicorn's own 5 would meet their next request with a reset


def test_answers_without_a_body_are_not_held_back(server: Server) -> None:
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(b"HEAD /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n")
            connection.settimeout(5)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_that_waits_to_be_asked_for_is_asked_for(server: Server) -> None:
    body = encoded(0)
    head, _, _ = request(body, "expect: 100-continue").partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert answer_of(connection)[0] == 100
        connection.sendall(body)
        assert answer_of(connection)[0] == 200


OFFER = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA")


@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_a_request_that_offers_http2_keeps_its_body(server: Server, pieces: int) -> None:
    wanted = server.post(f"{CLASSIFY}?topk=2", encoded(0))
    sent = request(encoded(0), *OFFER, path=f"{CLASSIFY}?topk=2")
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the connection stays
            size = -(-len(sent) // pieces)
            for start in range(0, len(sent), size):
                connection.sendall(sent[start : start + size])
                if pieces > 1:
                    time.sleep(0.001)
            status, headers, body = answer_of(connection)
            assert (status, json.loads(body)) == wanted
            assert headers.get("connection") != "close"


def test_offers_of_http2_may_be_chunked_or_without_a_body(server: Server) -> None:
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(encoded(0)), encoded(0))
    head = request(b"", *OFFER).replace(b"content-length: 0", b"transfer-encoding: chunked")
    with connect(server) as connection:
        connection.sendall(head + chunks)
        assert answer_of(connection)[0] == 200
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n" + "\r\n".join(OFFER).encode() + b"\r\n\r\n")
        assert answer_of(connection)[0] == 200
        connection.sendall(request(encoded(0)))
        assert answer_of(connection)[0] == 200


def test_curl_may_offer_http2(server: Server, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None or "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("no curl with HTTP/2 here")
    (tmp_path / "image.png").write_bytes(encoded(0))
    asked = [curl, "-s", "--http2", "--data-binary", f"@{tmp_path / 'image.png'}", f"http://{server.http}{CLASSIFY}"]
    done = subprocess.run(asked, capture_output=True, check=True, timeout=30)
    assert json.loads(done.stdout) == server.post(CLASSIFY, encoded(0))[1]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /v2/health/live HTT",
        b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nx-more",
    ],
)
def test_a_head_that_does_not_come_ends_the_connection(server: Server, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        begun = time.monotonic()
        assert answer_of(connection)[0] == 408
        assert PATIENCE - 0.2 < time.monotonic() - begun < PATIENCE + 5


def test_a_head_that_trickles_ends_the_connection(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"."):
            for number in range(60):
                connection.sendall(b"x-%d: y\r\n" % number)
                time.sleep(0.2)


def test_a_body_that_trickles_is_refused_and_the_connection_ends(server: Server) -> None:
    before = server.metric('pipeline_refused_requests_total{reason="body too slow"}')
    with connect(server) as connection:
        connection.sendall(request(b"x" * 100)[:-99])
        status, _, body = answer_of(connection)
        assert (status, json.loads(body)) == (408, {"error": "the body came too slowly: 1 bytes in 1.5 s"})
        with pytest.raises(OSError, match=r"."):
            for _ in range(60):
                connection.sendall(b"x")
                time.sleep(0.2)
    assert server.metric('pipeline_refused_requests_total{reason="body too slow"}') == before + 1


def test_a_body_that_nobody_reads_does_not_hold_the_connection(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert answer_of(connection)[0] == 200
        with pytest.raises(OSError, match=r"."):
            for _ in range(60):
                connection.sendall(b"x")
                time.sleep(0.2)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * (70 << 10) + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * (1 << 20),
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (20 << 10),
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"e" * (1 << 20),
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"t: y\r\n" * (200 << 10),
    ],
    ids=["address", "value", "headers", "chunk extension", "trailers"],
)
def test_what_is_no_body_has_bounds(server: Server, sent: bytes) -> None:
    with connect(server) as connection:
        try:
            for _ in range(40):
                connection.sendall(sent[: 1 << 18])
                connection.sendall(sent[-(1 << 18) :])
        except OSError:
            return
        pytest.fail("all was taken")


def test_connect_is_refused(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answer_of(connection)[0] == 400


def test_a_thousand_idle_connections_do_not_keep_others_out(server: Server) -> None:
    idle = [connect(server) for _ in range(1000)]
    try:
        assert server.post(CLASSIFY, encoded(0))[0] == 200
        time.sleep(PATIENCE + 2)
        assert server.post(CLASSIFY, encoded(0))[0] == 200
        idle[0].settimeout(5)
        assert b"408" in idle[0].recv(100)
    finally:
        for connection in idle:
            connection.close()


def rpc(server: Server, messages: Iterator[bytes]) -> Any:
    """Call a method with a stream of messages, which takes one."""
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(messages, timeout=20)
        return caught.value


def test_a_message_over_grpc_that_does_not_come_is_refused(server: Server) -> None:
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(20)
        yield from ()

    begun = time.monotonic()
    found = rpc(server, nothing())
    over.set()
    assert (found.code(), found.details()) == (StatusCode.DEADLINE_EXCEEDED, "the message did not come in 5.5 s")
    assert 5 < time.monotonic() - begun < 10
    found = rpc(server, iter(()))
    assert (found.code(), found.details()) == (StatusCode.INVALID_ARGUMENT, "expected one message, got none")


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"])
def test_what_is_no_grpc_is_let_go(server: Server, sent: bytes) -> None:
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        begun = time.monotonic()
        while connection.recv(1 << 16):
            pass
        assert time.monotonic() - begun < PATIENCE + 5


def test_the_server_is_well_after_all_that(server: Server) -> None:
    assert server.post(CLASSIFY, encoded(0))[0] == 200
    assert server.get("/v2/health/ready")[0] == 200
    assert server.process.poll() is None
