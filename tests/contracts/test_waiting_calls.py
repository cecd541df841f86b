"""What gRPC does with calls that a busy server has not taken up, and that its statistics count them.

Seen with grpcio 1.85.3. They wait inside gRPC, which ends them as CANCELLED after a time (30 s) and beyond a number
(1000 to 3000, by chance). Both bounds are options, of which the second has no public name. `serve` raises them, and
refuses calls itself by the count of channelz: calls that have started and neither succeeded nor failed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping

import pytest

pytest.importorskip("fastapi", reason="serve's packages are not installed: pip install '.[serve]'")
import grpc
from grpc._cython import cygrpc

PATIENCE = "grpc.server_max_unrequested_time_in_server"
MOST, MOST_AT_ALL = "grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit"
COUNT = 100


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def answer(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


def call(port: int, timeout: float) -> Counter[str]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = [channel.unary_unary("/a/b").future(b"", timeout=timeout) for _ in range(COUNT)]
        return Counter(each.code().name for each in calls)


def open_calls(server_id: int) -> int:
    found = json.loads(cygrpc.channelz_get_server(server_id))["server"]["data"]
    return int(found["callsStarted"]) - int(found.get("callsSucceeded", 0)) - int(found.get("callsFailed", 0))


async def flood(blocked_s: float, timeout: float, options: Mapping[str, int]) -> tuple[Counter[str], int, int]:
    """Return the codes of calls that come while the event loop is busy, and the open ones before and after it."""
    server = grpc.aio.server(options=[*options.items()])
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    known = json.loads(cygrpc.channelz_get_servers(0))["server"]
    number = max(int(each["ref"]["serverId"]) for each in known)
    await server.start()
    asked = asyncio.create_task(asyncio.to_thread(call, port, timeout))
    await asyncio.sleep(0)
    time.sleep(blocked_s)
    before = open_calls(number)
    found = await asked
    await asyncio.sleep(0.3)
    after = open_calls(number)
    await server.stop(0)
    return found, before, after


def test_calls_that_wait_too_long_are_cancelled() -> None:
    found, _, _ = asyncio.run(flood(1.5, 30, {PATIENCE: 1}))
    assert found["CANCELLED"] > COUNT / 2


def test_calls_beyond_a_number_are_cancelled() -> None:
    found, _, _ = asyncio.run(flood(1.0, 30, {MOST: COUNT // 2, MOST_AT_ALL: COUNT // 2}))
    assert COUNT // 2 - 5 <= found["CANCELLED"] <= COUNT // 2  # a few were taken up before the loop was busy


@pytest.mark.parametrize(("timeout", "code", "waiting"), [(30, "OK", COUNT), (0.3, "DEADLINE_EXCEEDED", None)])
def test_channelz_counts_calls_that_wait_until_they_end(timeout: float, code: str, waiting: int | None) -> None:
    found, before, after = asyncio.run(flood(1.0, timeout, {PATIENCE: 100}))
    assert found == {code: COUNT}
    assert waiting is None or before == waiting
    assert after == 0
