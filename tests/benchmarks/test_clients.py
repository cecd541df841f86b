"""benchmarks/clients: calls over plain HTTP/2, answered by gRPC's own server."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("grpc", reason="serve's packages are not installed: pip install '.[serve]'")
import grpc

from pipeline.errors import PipelineError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PATH = "/service/Method"


@pytest.fixture(scope="module")
def clients() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_clients", FOLDER / "clients.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Backwards(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers a message with its bytes from the last to the first; an empty one with an error."""

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == PATH else None

    async def _answer(self, message: bytes, context: Any) -> bytes:
        if not message:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "nothing: ä, 100%")
        if message == b"stop":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        await asyncio.sleep(len(message) % 7 / 100)  # so that answers come in another order
        return message[::-1]


def served(work: Callable[[str], Awaitable[Any]]) -> Any:
    """Return what a function makes of the address of such a server."""

    async def run() -> Any:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Backwards(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            return await work(f"127.0.0.1:{port}")
        finally:
            await server.stop(None)

    return asyncio.run(run())


def test_calls_of_all_sizes_at_once_get_their_own_answers(clients: ModuleType) -> None:
    messages = [
        bytes([number % 251, *range(200)]) * size for number, size in enumerate([1, 5, 80, 400, 900, 15000] * 8)
    ]

    async def ask(address: str) -> list[bytes]:
        rpc = clients.Rpc(address, PATH)
        found = await asyncio.gather(*(rpc.ask(clients.prefixed(each)) for each in messages))
        rpc.close()
        return list(found)

    assert served(ask) == [each[::-1] for each in messages]


@pytest.mark.parametrize(
    ("message", "path", "wanted"),
    [(b"", PATH, "status 3: nothing: ä, 100%"), (b"a", "/service/Other", "status 12: ")],
)
def test_an_error_of_the_server_is_raised(clients: ModuleType, message: bytes, path: str, wanted: str) -> None:
    with pytest.raises(PipelineError, match=wanted):
        served(lambda address: clients.Rpc(address, path).ask(clients.prefixed(message)))


def test_a_server_that_stops_or_is_gone_refuses(clients: ModuleType) -> None:
    with pytest.raises(clients.RefusedError, match="stopping"):
        served(lambda address: clients.Rpc(address, PATH).ask(clients.prefixed(b"stop")))

    async def gone(address: str) -> str:
        return address

    with pytest.raises(clients.RefusedError, match="refused"):
        asyncio.run(clients.Rpc(served(gone), PATH).ask(clients.prefixed(b"a")))


def test_headers_in_huffmans_code_are_none_that_it_reads(clients: ModuleType) -> None:
    # RFC 7541, C.2.1 and C.4.1: a literal, and one in Huffman's code.
    literal = bytes.fromhex("400a637573746f6d2d6b65790d637573746f6d2d686561646572")
    assert clients.read_headers(literal) == {"custom-key": "custom-header"}
    with pytest.raises(ValueError, match="Huffman"):
        clients.read_headers(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))


def test_calls_are_refused_when_the_server_has_gone(clients: ModuleType) -> None:
    async def run() -> list[BaseException | bytes]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Backwards(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        rpc = clients.Rpc(f"127.0.0.1:{port}", PATH)
        under_way = asyncio.create_task(rpc.ask(clients.prefixed(b"abcdef")))
        await asyncio.sleep(0.03)
        stopping = asyncio.create_task(server.stop(5.0))
        await asyncio.sleep(0.01)
        calls = [under_way, *(rpc.ask(clients.prefixed(b"abc")) for _ in range(3))]
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10.0)
        await stopping
        later = await asyncio.gather(asyncio.wait_for(rpc.ask(clients.prefixed(b"abc")), 10.0), return_exceptions=True)
        rpc.close()
        return [*found, *later]

    found = asyncio.run(run())
    assert found[0] == b"fedcba"
    assert all(isinstance(each, clients.RefusedError) for each in found[1:]), found
