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

pytest.importorskip("grpc", reason="serve's packages are not installed: pip install '.[serve]'")
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


def calls_of(server_id: int) -> tuple[int, int]:
    """Return how many calls have started, and how many of them are open."""
    found = json.loads(cygrpc.channelz_get_server(server_id))["server"]["data"]
    started, *ended = (int(found.get(name, 0)) for name in ("callsStarted", "callsSucceeded", "callsFailed"))
    return started, started - sum(ended)


async def flood(blocked_s: float, timeout: float, options: Mapping[str, int]) -> tuple[Counter[str], int, int]:
    """Return the codes of calls that come while the event loop is busy, and the open ones before and after it.

    Args:
        blocked_s: it is busy until all have come, 30 s at most, and for so many seconds more.
    """
    server = grpc.aio.server(options=[*options.items()])
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    known = json.loads(cygrpc.channelz_get_servers(0))["server"]
    number = max(int(each["ref"]["serverId"]) for each in known)
    await server.start()
    asked = asyncio.create_task(asyncio.to_thread(call, port, timeout))
    await asyncio.sleep(0)
    begun = time.monotonic()
    while calls_of(number)[0] < COUNT and time.monotonic() < begun + 30:
        time.sleep(0.02)
    before = calls_of(number)[1]
    time.sleep(blocked_s)
    found = await asked
    begun = time.monotonic()
    while (after := calls_of(number)[1]) and time.monotonic() < begun + 10:
        await asyncio.sleep(0.02)
    await server.stop(0)
    return found, before, after


def test_calls_that_wait_too_long_are_cancelled() -> None:
    found, _, _ = asyncio.run(flood(1.5, 30, {PATIENCE: 1}))
    assert found["CANCELLED"] > COUNT / 2


def test_calls_beyond_a_number_are_cancelled() -> None:
    found, _, _ = asyncio.run(flood(0.0, 30, {MOST: COUNT // 2, MOST_AT_ALL: COUNT // 2}))
    assert COUNT // 2 - 5 <= found["CANCELLED"] <= COUNT // 2  # a few were taken up before the loop was busy


@pytest.mark.parametrize(("timeout", "code", "waiting"), [(30, "OK", COUNT), (0.3, "DEADLINE_EXCEEDED", None)])
def test_channelz_counts_calls_that_wait_until_they_end(timeout: float, code: str, waiting: int | None) -> None:
    found, before, after = asyncio.run(flood(0.5, timeout, {PATIENCE: 100}))
    assert found == {code: COUNT}
    assert waiting is None or before == waiting
    assert after == 0
