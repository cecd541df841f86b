"""Access control: tokens and certificates over both protocols, what one client may take, and what the log says."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import io
import json
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_fixtures import NAME, REPOSITORY, TinyWorkspace
from serve_fixtures import Server, command, encoded, running

from pipeline.errors import ConfigError
from pipeline.serve.access import AccessLog, Visit
from pipeline.serve.tokens import make_token, read_tokens

if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install '.[ci]'")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException
if shutil.which("openssl") is None:
    pytest.skip("no openssl here, which makes the certificates", allow_module_level=True)

pytestmark = pytest.mark.slow
CLASSIFY = f"/v2/models/{NAME}/classify"
PROTECTED = ["/v2", "/v2/models", "/v2/models/stats", f"/v2/models/{NAME}", f"/v2/models/{NAME}/ready", "/metrics"]


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Authority:
    """One that vouches for certificates, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.own = Pair(folder / "ca.pem", folder / "ca.key")
        name = ["-subj", f"/CN={folder.name}", "-days", "30", "-addext", "basicConstraints=critical,CA:TRUE"]
        self._openssl("req", "-x509", *self._new_key(self.own.key), *name, "-out", str(self.own.certificate))

    def pair(self, name: str, *, expired: bool = False) -> Pair:
        """Make a certificate for 127.0.0.1."""
        made = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, more = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        more.write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl("req", *self._new_key(made.key), "-subj", f"/CN={name}", "-out", str(request))
        days = ["-not_before", "20200101000000Z", "-not_after", "20200201000000Z"] if expired else ["-days", "30"]
        if expired:  # `x509 -req` of OpenSSL before 3.4 cannot, `ca` can
            self._sign_as_of_2020(request, made.certificate, more)
            return made
        signed = ["-CA", str(self.own.certificate), "-CAkey", str(self.own.key), "-CAcreateserial", *days]
        out = ["-in", str(request), "-extfile", str(more), "-out", str(made.certificate)]
        self._openssl("x509", "-req", *signed, *out)
        return made

    def _sign_as_of_2020(self, request: Path, certificate: Path, more: Path) -> None:
        (self.folder / "index").write_text("")
        (self.folder / "serial").write_text("77\n")
        config = self.folder / "config"
        config.write_text(
            f"[ca]\ndefault_ca=d\n[d]\ndatabase={self.folder}/index\nserial={self.folder}/serial\n"
            f"new_certs_dir={self.folder}\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n"
        )
        own = ["-cert", str(self.own.certificate), "-keyfile", str(self.own.key), "-config", str(config)]
        days = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z", "-extfile", str(more)]
        self._openssl("ca", "-batch", "-notext", *own, *days, "-in", str(request), "-out", str(certificate))

    @staticmethod
    def _new_key(path: Path) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(path)]

    @staticmethod
    def _openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Client:
    """A client of either protocol, with what it knows and shows."""

    server: Server
    trusts: Authority | None = None
    shows: Pair | None = None
    token: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection: http.client.HTTPConnection
        if self.trusts is None:
            connection = http.client.HTTPConnection(self.server.http, timeout=30)
        else:
            context = ssl.create_default_context(cafile=str(self.trusts.own.certificate))
            if self.shows is not None:
                context.load_cert_chain(self.shows.certificate, self.shows.key)
            connection = http.client.HTTPSConnection(self.server.http, timeout=30, context=context)
        try:
            more = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **more})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def rpc(self) -> Any:
        keys: dict[str, Any] = {}
        if self.trusts is not None:
            keys = {"ssl": True, "root_certificates": str(self.trusts.own.certificate)}
        if self.shows is not None:
            keys |= {"private_key": str(self.shows.key), "certificate_chain": str(self.shows.certificate)}
        return triton_grpc.InferenceServerClient(self.server.grpc, **keys)

    def infer(self, content: bytes | None = None) -> int:
        """Return the best class of an image over gRPC."""
        files = np.array([encoded(0) if content is None else content], dtype=object)
        given = triton_grpc.InferInput("encoded_image", [1], "BYTES")
        given.set_data_from_numpy(files)
        answer = self.rpc().infer(NAME, [given], headers=self.headers, client_timeout=20)
        return int(answer.as_numpy("probabilities").argmax())

    def classify(self) -> int:
        """Return the best class of the same over REST."""
        status, _, body = self.ask("POST", CLASSIFY, encoded(0))
        assert status == 200, body
        return int(json.loads(body)[0]["class_ids"][0])


def serving(workspace: TinyWorkspace, *flags: str | Path) -> Any:
    return running(workspace.package, "-b", "1", "-i", "1", "--max_body", "1", *(str(flag) for flag in flags))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authorities") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authorities") / "strangers")


@dataclass(frozen=True)
class Guarded:
    client: Client
    expired: str  # a token
    tokens: Path
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def guarded(
    tiny_workspace_master: TinyWorkspace, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """A server with TLS, tokens and a log."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens, log = folder / "tokens.txt", folder / "access.log"
    alice, bob = make_token(tokens, "alice", None), make_token(tokens, "bob", 1)
    lines = tokens.read_text().splitlines()
    tokens.write_text(f"{lines[0]}\n{' '.join(lines[1].split()[:2])} 2001-02-03T04:05:06Z\n")
    shown = authority.pair("server")
    flags: list[str | Path] = [
        "--tls_cert",
        shown.certificate,
        "--tls_key",
        shown.key,
        "--tokens",
        tokens,
        "--access_log",
        log,
    ]
    with serving(tiny_workspace_master, *flags, "--max_pixels", "1") as server:
        yield Guarded(Client(server, authority, token=alice), bob, tokens, log)


def test_a_token_lets_in_over_both_protocols(guarded: Guarded) -> None:
    assert guarded.client.classify() == guarded.client.infer()
    for path in PROTECTED:
        assert guarded.client.ask("GET", path)[0] == 200


def test_no_token_lets_nobody_in_but_probes(guarded: Guarded) -> None:
    nobody = Client(guarded.client.server, guarded.client.trusts)
    for method, path in [*(("GET", path) for path in PROTECTED), ("HEAD", "/v2"), ("POST", CLASSIFY), ("GET", "/none")]:
        status, headers, _ = nobody.ask(method, path)
        assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
    assert nobody.ask("GET", "/v2/health/live")[0] == nobody.ask("GET", "/v2/health/ready")[0] == 200
    rpc = nobody.rpc()
    assert rpc.is_server_live()
    assert rpc.is_server_ready()
    asked = (
        lambda: rpc.is_model_ready(NAME),
        rpc.get_server_metadata,
        lambda: rpc.get_model_metadata(NAME),
        lambda: rpc.get_model_config(NAME),
        rpc.get_inference_statistics,
        lambda: rpc.unload_model(NAME),
        nobody.infer,
    )
    for ask in asked:
        with pytest.raises(InferenceServerException, match="no token; send the header") as caught:
            ask()
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("wrong", "the token is not known"),
        ("", "expected the header 'authorization: Bearer TOKEN'"),
        ("expired", "the token of 'bob' has expired"),
        ("longer", "the token is not known"),
    ],
)
def test_a_wrong_token_lets_nobody_in(guarded: Guarded, token: str, text: str) -> None:
    given = {"expired": guarded.expired, "longer": f"{guarded.client.token}x"}.get(token, token)
    client = Client(guarded.client.server, guarded.client.trusts, token=given)
    status, _, body = client.ask("POST", CLASSIFY, encoded(0))
    assert (status, json.loads(body)) == (401, {"error": text})
    with pytest.raises(InferenceServerException) as caught:
        client.infer()
    assert (caught.value.message(), caught.value.status()) == (text, "StatusCode.UNAUTHENTICATED")


def test_a_path_that_is_written_otherwise_lets_nobody_in(guarded: Guarded) -> None:
    nobody = Client(guarded.client.server, guarded.client.trusts)
    for path in ("//v2", "/v2/", "/%76%32", "/v2/health/live/../../models", "/v2/health/live/", "/ServerLive"):
        assert nobody.ask("GET", path)[0] in (401, 404), path
        assert b"extensions" not in nobody.ask("GET", path)[2]


def test_a_new_token_is_known_and_a_revoked_one_not(guarded: Guarded) -> None:
    carol = Client(guarded.client.server, guarded.client.trusts, token=make_token(guarded.tokens, "carol", 1))
    time.sleep(1.1)
    assert carol.classify() == guarded.client.classify()
    from pipeline.serve.tokens import revoke

    revoke(guarded.tokens, "carol")
    time.sleep(1.1)
    assert carol.ask("GET", "/v2")[0] == 401


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("alice sha256:0\n", 0o600, "expected NAME sha256:HEX"),
        ("\xff\n", 0o600, "it is no text"),
        ("", 0o666, "others may write to it"),
        (None, 0o600, "no such file"),
    ],
)
def test_tokens_that_are_edited_badly_stay_as_they_were(
    guarded: Guarded, text: str | None, mode: int, said: str
) -> None:
    before = guarded.tokens.read_bytes()
    try:
        if text is None:
            guarded.tokens.unlink()
        else:
            guarded.tokens.write_bytes(before + text.encode("latin-1"))
            guarded.tokens.chmod(mode)
        time.sleep(1.1)
        assert guarded.client.classify() == guarded.client.infer()
        nobody = Client(guarded.client.server, guarded.client.trusts, token="guess")
        assert nobody.ask("GET", "/v2")[0] == 401
    finally:
        guarded.tokens.write_bytes(before)
        guarded.tokens.chmod(0o600)
    with pytest.raises(ConfigError, match=said):
        check_tokens(guarded.tokens, before, text, mode)
    time.sleep(1.1)
    assert guarded.client.classify() == guarded.client.infer()


def check_tokens(path: Path, before: bytes, text: str | None, mode: int) -> None:
    """Read such a file as the server does when it starts."""
    other = path.with_name("other.txt")
    if text is not None:
        other.write_bytes(before + text.encode("latin-1"))
        other.chmod(mode)
    try:
        read_tokens(other)
    finally:
        other.unlink(missing_ok=True)


def test_the_log_says_who_asked_what_and_holds_no_image_and_no_token(guarded: Guarded) -> None:
    guarded.client.ask("POST", f"{CLASSIFY}?topk=2&secret=5", encoded(0))
    guarded.client.infer()
    Client(guarded.client.server, guarded.client.trusts, token="guess").ask("GET", "/v2\x22".replace("\x22", "%22%0A"))
    time.sleep(0.2)
    rest, rpc, refused = guarded.lines()[-3:]
    wanted = {"protocol": "http", "method": "POST", "path": CLASSIFY, "name": "alice", "status": 200}
    assert wanted.items() <= rest.items()
    assert rest["bytes_in"] == len(encoded(0))
    assert (rest["address"], rpc["address"]) == ("127.0.0.1", "127.0.0.1")
    assert 0 < rest["bytes_out"] < 1000
    assert 0 < rest["ms"] < 30_000
    assert {"protocol": "grpc", "path": "ModelInfer", "name": "alice", "status": "OK"}.items() <= rpc.items()
    assert rpc["bytes_in"] > len(encoded(0))
    assert {"path": '/v2"\n', "name": None, "status": 401}.items() <= refused.items()
    text = guarded.log.read_text()
    assert guarded.client.token is not None
    for secret in (guarded.client.token, "guess", "secret", "PNG"):
        assert secret not in text


def test_the_log_is_opened_anew_when_it_is_moved(guarded: Guarded) -> None:
    guarded.log.rename(guarded.log.with_suffix(".1"))
    time.sleep(1.1)
    guarded.client.ask("GET", "/v2")
    time.sleep(0.2)
    assert [line["path"] for line in guarded.lines()] == ["/v2"]


def test_requests_are_answered_when_the_log_cannot_be_opened_anew(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AccessLog(folder / "access.log")
    log.write(Visit("http", "GET", "/1", ""), 0.0)
    folder.rename(tmp_path / "away")
    time.sleep(1.1)
    for number in (2, 3):
        log.write(Visit("http", "GET", f"/{number}", ""), 0.0)
    folder.mkdir()
    time.sleep(1.1)
    log.write(Visit("http", "GET", "/4", ""), 0.0)
    log.close()
    assert [json.loads(line)["path"] for line in (folder / "access.log").read_text().splitlines()] == ["/4"]
    kept = [json.loads(line)["path"] for line in (tmp_path / "away" / "access.log").read_text().splitlines()]
    assert kept == ["/1", "/3"]  # the second met the missing folder


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_keeps_nobody_from_asking_and_stopping(tiny_workspace_master: TinyWorkspace) -> None:
    with running(tiny_workspace_master.package, "--access_log", "/dev/full") as server:
        for _ in range(200):
            assert server.get("/v2/health/live")[0] == 200
        code, text = server.stop()
    assert code == 0
    assert text.count("/dev/full: cannot be written") == 1
    assert "Traceback" not in text


def test_pages_of_allowed_origins_may_call_and_no_others(
    guarded: Guarded, tiny_workspace_master: TinyWorkspace, tmp_path: Path
) -> None:
    page, other = "https://shop.example", "https://shop.example.net"
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,content-type"}
    token = make_token(tmp_path / "tokens.txt", "alice", None)
    with running(
        tiny_workspace_master.package, "--tokens", str(tmp_path / "tokens.txt"), "--allow_origin", page, "http://a:1"
    ) as server:
        client = Client(server, token=token)
        nobody = Client(server)
        for origin in (page, "http://a:1"):
            # Browsers send no token here.
            status, headers, _ = nobody.ask("OPTIONS", CLASSIFY, b"", origin=origin, **asked)
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
            assert "authorization" in headers["access-control-allow-headers"]
            status, headers, _ = client.ask("POST", CLASSIFY, encoded(0), origin=origin)
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
            assert headers["access-control-expose-headers"] == "inference-header-content-length"
            # A page can read why it was refused.
            status, headers, _ = nobody.ask("POST", CLASSIFY, encoded(0), origin=origin)
            assert (status, headers["access-control-allow-origin"]) == (401, origin)
        status, headers, _ = nobody.ask("OPTIONS", CLASSIFY, b"", origin=other, **asked)
        assert status == 400 and "access-control-allow-origin" not in headers
        status, headers, _ = client.ask("POST", CLASSIFY, encoded(0), origin=other)
        assert "access-control-allow-origin" not in headers
    for method in ("OPTIONS", "POST"):  # without the flag
        _, headers, _ = guarded.client.ask(method, CLASSIFY, encoded(0), origin=page, **asked)
        assert not [key for key in headers if key.startswith("access-control")]


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "https://*.example", "null", "HTTPS://A"])
def test_origins_that_no_browser_sends_are_refused(origin: str, tiny_workspace_master: TinyWorkspace) -> None:
    done = subprocess.run(
        command(tiny_workspace_master.package, "--allow_origin", origin), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "expected an origin as browsers send it, such as https://shop.example" in done.stderr
    assert f", got {origin}; see" in done.stderr


def test_plain_clients_and_those_that_do_not_trust_get_nothing(guarded: Guarded, stranger: Authority) -> None:
    server, token = guarded.client.server, guarded.client.token
    with pytest.raises(ssl.SSLCertVerificationError):
        Client(server, stranger, token=token).classify()
    for client in (Client(server, stranger, token=token), Client(server, token=token)):
        with pytest.raises(InferenceServerException):
            client.infer()
    with pytest.raises((http.client.HTTPException, OSError)):
        Client(server, token=token).classify()
    assert guarded.client.classify() == guarded.client.infer()


def huge_png(side: int) -> bytes:
    """Return a PNG of a few KB that decodes to side * side black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, lines = zlib.compressobj(9), b"\0" * (side // 8 + 1)
    data = b"".join(packer.compress(lines) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def resident_mib(server: Server) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096 >> 20


def test_images_that_decode_to_gigabytes_are_refused(guarded: Guarded) -> None:
    content = huge_png(32_000)  # 3 GB of RGB
    assert len(content) < 1 << 20
    before = resident_mib(guarded.client.server)
    status, _, body = guarded.client.ask("POST", CLASSIFY, content)
    assert status == 400
    assert "1024000000 pixels" in json.loads(body)["error"]
    with pytest.raises(InferenceServerException, match="1024000000 pixels"):
        guarded.client.infer(content)
    stream = io.BytesIO()
    Image.new("L", (1200, 1200)).save(stream, "JPEG")
    status, _, body = guarded.client.ask("POST", CLASSIFY, stream.getvalue())
    assert (status, json.loads(body)["error"]) == (
        400,
        f"image: image of {len(stream.getvalue())} bytes: 1200 x 1200 is more than 1000000 pixels",
    )
    assert resident_mib(guarded.client.server) - before < 100


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_bodies_that_unpack_to_gigabytes_are_refused(guarded: Guarded) -> None:
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(900)) + packer.flush()
    assert len(packed) < 1 << 20
    before = resident_mib(guarded.client.server)
    for path in (CLASSIFY, f"/v2/models/{NAME}/infer"):
        assert guarded.client.ask("POST", path, packed, content_encoding="gzip")[0] == 413
    assert resident_mib(guarded.client.server) - before < 100


def test_a_renewed_certificate_is_taken_while_it_serves(
    tiny_workspace_master: TinyWorkspace, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    shown = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")

    def put(pair: Pair) -> None:
        shutil.copy(pair.certificate, shown.certificate)
        shutil.copy(pair.key, shown.key)

    def settled(client: Client, works: bool) -> None:
        """Wait until a client gets on, or no more."""
        for _ in range(100):
            try:
                client.classify()
                found = True
            except OSError:
                found = False
            if found == works:
                return
            time.sleep(0.1)
        pytest.fail("it did not change")

    ours, theirs = authority.pair("renewed"), stranger.pair("renewed")
    put(ours)
    flags: list[str | Path] = ["--tls_cert", shown.certificate, "--tls_key", shown.key]
    with serving(tiny_workspace_master, *flags) as server:
        before, after = Client(server, authority), Client(server, stranger)
        old = before.rpc()
        assert old.is_server_ready()
        with pytest.raises(ssl.SSLCertVerificationError):
            after.classify()
        shutil.copy(theirs.key, shown.key)  # half of a renewal: the old pair stays
        for _ in range(20):
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        assert before.classify() == before.infer()
        put(theirs)
        server.process.send_signal(signal.SIGHUP)
        settled(after, True)
        assert after.classify() == after.infer()
        with pytest.raises(InferenceServerException):
            before.infer()
        assert old.is_server_ready()  # connections that are open stay
        put(ours)  # without a signal: it looks by itself
        settled(before, True)
        _, out = server.stop()
        assert out.count("the certificate from before stays") in (1, 2)  # once for either renewal that was seen by half
        assert f"{shown.certificate}: read again" in out


def test_clients_need_a_certificate_when_it_is_asked_for(
    tiny_workspace_master: TinyWorkspace, authority: Authority, stranger: Authority
) -> None:
    shown = authority.pair("mutual")
    files: list[str | Path] = [
        "--tls_cert",
        shown.certificate,
        "--tls_key",
        shown.key,
        "--tls_client_ca",
        authority.own.certificate,
    ]
    with serving(tiny_workspace_master, *files) as server:
        friend = Client(server, authority, authority.pair("friend"))
        assert friend.classify() == friend.infer()
        for wrong in (None, stranger.pair("foe"), authority.pair("late", expired=True)):
            client = Client(server, authority, wrong)
            with pytest.raises((http.client.HTTPException, OSError)):
                client.ask("GET", "/v2/health/live")
            with pytest.raises(InferenceServerException):
                client.infer()
        assert friend.classify() == friend.infer()


def test_a_renewal_under_load_loses_no_request(
    tiny_workspace_master: TinyWorkspace, authority: Authority, tmp_path: Path
) -> None:
    pairs = [authority.pair(f"turn-{number}") for number in range(2)]
    shown = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")

    def put(pair: Pair) -> None:
        """Write both files one after the other, in parts, as programs that renew them do."""
        for source, target in ((pair.certificate, shown.certificate), (pair.key, shown.key)):
            with target.open("wb") as stream:
                for part in (source.read_bytes()[:99], source.read_bytes()[99:]):
                    stream.write(part)
                    stream.flush()
                    time.sleep(0.02)

    put(pairs[0])
    with serving(tiny_workspace_master, "--tls_cert", shown.certificate, "--tls_key", shown.key) as server:
        client, over = Client(server, authority), threading.Event()

        def ask(over_rest: bool) -> int:
            count = 0
            while not over.is_set():
                if over_rest:
                    client.classify()
                else:
                    client.infer()
                count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, number % 2 == 0) for number in range(4)]
            for turn in range(1, 7):
                put(pairs[turn % 2])
                server.process.send_signal(signal.SIGHUP)
                time.sleep(0.4)
            over.set()
            assert all(each.result(60) > 0 for each in asking)


def test_handshakes_that_trickle_or_do_not_come_end(tiny_workspace_master: TinyWorkspace, authority: Authority) -> None:
    pair, patience = authority.pair("patient"), 1.5
    flags: list[str | Path] = ["--tls_cert", pair.certificate, "--tls_key", pair.key, "--client_timeout", str(patience)]
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)  # the start of one
    with serving(tiny_workspace_master, *flags) as server:
        addresses = [each.split(":") for each in (server.http, server.grpc) for _ in range(100)]
        waiting = [socket.create_connection((host, int(port)), timeout=20) for host, port in addresses]
        try:
            assert Client(server, authority).classify() == Client(server, authority).infer()
            begun = time.monotonic()
            for number, connection in enumerate(waiting):
                connection.sendall(hello[: number % 50])
            for connection in waiting:
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(1 << 16):
                        pass
            assert time.monotonic() - begun < patience + 8
        finally:
            for connection in waiting:
                connection.close()
        assert Client(server, authority).classify() == Client(server, authority).infer()


def test_a_server_whose_certificate_has_expired_is_not_trusted(
    tiny_workspace_master: TinyWorkspace, authority: Authority
) -> None:
    shown = authority.pair("old", expired=True)
    with serving(tiny_workspace_master, "--tls_cert", shown.certificate, "--tls_key", shown.key) as server:
        client = Client(server, authority)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            client.classify()
        with pytest.raises(InferenceServerException):
            client.infer()


def statuses(client: Client, count: int) -> list[int]:
    with ThreadPoolExecutor(count) as pool:
        return sorted(pool.map(lambda _: client.ask("POST", CLASSIFY, encoded(0))[0], range(count)))


def test_a_client_gets_its_share_and_no_more(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    alice, bob = (make_token(tokens, name, None) for name in ("alice", "bob"))
    with serving(tiny_workspace_master, "--tokens", tokens, "--client_rate", "2", "--open_metrics") as server:
        greedy, other = Client(server, token=alice), Client(server, token=bob)
        found = statuses(greedy, 12)
        assert set(found) == {200, 429}
        assert 4 <= found.count(200) <= 8
        status, headers, body = greedy.ask("POST", CLASSIFY, encoded(0))
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body) == {"error": "more than 2 requests a second of one client; try again later"}
        with pytest.raises(InferenceServerException, match="more than 2 requests a second") as caught:
            greedy.infer()
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert other.classify() == other.infer()
        assert Client(server).ask("GET", "/metrics")[0] == 200
        assert server.metric('pipeline_refused_requests_total{reason="client\'s share"}') == found.count(429) + 2


# Runs commands one after the other and prints what each exits with, as a line that no command prints.
RUN_ALL = """
import json, sys
from pipeline.commands.cli import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(f"exit code {code}", file=sys.stderr, flush=True)
"""


def faults(workspace: TinyWorkspace, *runs: Sequence[object]) -> list[str]:
    """Return the line that `serve` ends with for the flags of each run; one process, which imports it once."""
    words = [[*command(workspace.package)[3:], *map(str, flags)] for flags in runs]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(words)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("sample weights")]
    assert lines[1::2] == ["exit code 2"] * len(runs), done.stderr
    return lines[::2]


def test_it_does_not_listen_to_others_unasked(
    tiny_workspace_master: TinyWorkspace, authority: Authority, tmp_path: Path
) -> None:
    shown = authority.pair("exposed")
    tls = ["--tls_cert", str(shown.certificate), "--tls_key", str(shown.key)]
    tokens = ["--tokens", str(tmp_path / "tokens.txt")]
    make_token(tmp_path / "tokens.txt", "alice", None)

    exposed = ["--host", "0.0.0.0"]
    neither, anybody, in_clear = faults(tiny_workspace_master, exposed, [*exposed, *tls], [*exposed, *tokens])
    assert "without TLS (--tls_cert, --tls_key) and without asking who comes (--tokens or --tls_client_ca)" in neither
    assert "without asking who comes" in anybody
    assert "without TLS (--tls_cert, --tls_key); give them, or --insecure" in in_clear
    for flags in (["--insecure"], [*tls, *tokens], [*tls, "--tls_client_ca", str(authority.own.certificate)]):
        with serving(tiny_workspace_master, "--host", "0.0.0.0", *flags) as server:
            assert server.process.poll() is None


def test_files_that_will_not_do_are_said_in_a_line(
    tiny_workspace_master: TinyWorkspace, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    ours, theirs = authority.pair("fitting"), stranger.pair("other")
    locked = tmp_path / "locked.key"
    subprocess.run(["openssl", "ec", "-in", ours.key, "-aes256", "-passout", "pass:x", "-out", locked], check=True)

    def tls(certificate: Path, key: Path, *flags: object) -> list[object]:
        return ["--tls_cert", certificate, "--tls_key", key, *flags]

    wanted: list[tuple[str, list[object]]] = [
        ("not a certificate and its key in PEM (KEY_VALUES_MISMATCH)", tls(ours.certificate, theirs.key)),
        ("none.pem: no such file", tls(tmp_path / "none.pem", ours.key)),
        ("has a passphrase", tls(ours.certificate, locked)),
        ("not a certificate", tls(ours.certificate, ours.key, "--tls_client_ca", ours.key)),
        ("--tls_cert: needs --tls_key too", ["--tls_cert", ours.certificate]),
        ("needs --tls_cert and --tls_key", ["--tls_client_ca", authority.own.certificate]),
        ("no such file; make one by", ["--tokens", tmp_path / "none"]),
        ("--access_log", ["--access_log", tmp_path / "no" / "log"]),
    ]
    found = faults(tiny_workspace_master, *(flags for _, flags in wanted))
    for (part, _), line in zip(wanted, found, strict=True):
        assert part in line
