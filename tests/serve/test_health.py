"""gRPC's own health check, as Kubernetes and proxies ask for it."""

from __future__ import annotations

import importlib.util
import signal
import time

import pytest
from run_fixtures import TinyWorkspace
from serve_fixtures import running

grpc = pytest.importorskip("grpc", reason="serve's packages are not installed: pip install '.[serve]'")
if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)

pytestmark = pytest.mark.slow
SERVICE = b"inference.GRPCInferenceService"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse, as it is sent


def check(address: str, service: bytes = b"", method: str = "Check") -> bytes:
    """Return the answer to a HealthCheckRequest."""
    message = b"\x0a" + bytes([len(service)]) + service if service else b""
    with grpc.insecure_channel(address) as channel:
        answer: bytes = channel.unary_unary(f"/grpc.health.v1.Health/{method}")(message, timeout=20)
    return answer


def test_health_is_that_of_the_server_and_needs_no_token(
    tiny_workspace_master: TinyWorkspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    tokens.write_text(f"alice sha256:{'0' * 64}\n")
    tokens.chmod(0o600)
    with running(tiny_workspace_master.package, "--drain", "3", "--tokens", str(tokens)) as server:
        assert check(server.grpc) == check(server.grpc, SERVICE) == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(server.grpc, b"other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == f"no service 'other'; expected {SERVICE.decode()!r} or none"
        with pytest.raises(grpc.RpcError) as caught:  # a stream without end; clients go on without it
            check(server.grpc, method="Watch")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 3
        while (found := check(server.grpc)) == SERVING and time.monotonic() < end:
            time.sleep(0.02)
        assert found == NOT_SERVING
