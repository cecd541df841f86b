"""More calls over gRPC than the server can take up: each is answered or refused, and none ends as CANCELLED.

Run as a program, as `ask` does, it is such a server with its clients: `test_backlog.py COUNT BLOCKED_S TIMEOUT_S`.
KServe and tritonclient, which other tests import, define the same messages twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("grpc", reason="serve's packages are not installed: pip install '.[serve]'")
import grpc

if TYPE_CHECKING:
    from run_fixtures import TinyWorkspace

METADATA = "/inference.GRPCInferenceService/ServerMetadata"  # which needs no model
MOST = 8


def call(port: int, count: int, timeout: float) -> Counter[str]:
    """Send so many calls at once, 1000 over each connection; return their codes."""
    calls, channels = [], []
    for first in range(0, count, 1000):
        channels.append(grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]))
        ask = channels[-1].unary_unary(METADATA)
        calls += [ask.future(b"", timeout=timeout) for _ in range(min(1000, count - first))]
    found = Counter(each.code().name for each in calls)
    for channel in channels:
        channel.close()
    return found


async def flood(count: int, blocked_s: float, timeout: float) -> dict[str, Any]:
    """Return the codes of calls that arrive while the event loop is busy, and how many wait in the end.

    Args:
        blocked_s: it is busy until all have arrived, 30 s at most, and for so many seconds more.
    """
    from pipeline.serve.clients import Clients, Shares
    from pipeline.serve.guard import Admission
    from pipeline.serve.limits import Capacity
    from pipeline.serve.listening import make_rpc_server
    from pipeline.serve.served import Plane
    from pipeline.serve.siblings import Siblings

    capacity = Capacity(max_body=1000, max_requests=MOST, patience=30.0)
    admission = Admission(None, Clients(Shares()), None)
    server, port = make_rpc_server(Plane(), capacity, admission, Siblings(None, list), ("127.0.0.1", 0), None)
    await server.start()
    asked = asyncio.create_task(asyncio.to_thread(call, port, count, timeout))
    await asyncio.sleep(0)
    begun = time.monotonic()
    while capacity.waiting(0) < count - 1 and time.monotonic() < begun + 30:
        time.sleep(0.02)
    time.sleep(blocked_s)
    found = await asked
    until = time.monotonic() + 10
    while (left := capacity.waiting(0)) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    await server.stop(0)
    return {"codes": found, "left": left}


def ask(count: int, blocked_s: float, timeout: float) -> dict[str, Any]:
    command = [sys.executable, __file__, str(count), str(blocked_s), str(timeout)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=100, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("count", "blocked_s"), [(4000, 0.0), (200, 30.5)], ids=["many", "long"])
def test_calls_beyond_the_room_are_refused_when_they_wait_to_be_taken_up(count: int, blocked_s: float) -> None:
    found = ask(count, blocked_s, timeout=90)
    codes = found["codes"]
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert sum(codes.values()) == count
    assert codes["RESOURCE_EXHAUSTED"] > count / 2
    assert found["left"] == 0


def test_calls_that_clients_gave_up_do_not_wait() -> None:
    assert ask(200, 3.5, timeout=3) == {"codes": {"DEADLINE_EXCEEDED": 200}, "left": 0}


def test_calls_that_wait_get_an_answer_when_the_server_stops(tiny_workspace_master: TinyWorkspace) -> None:
    from serve_fixtures import running

    found: Counter[str] = Counter()
    with running(tiny_workspace_master.package, "-b", "4", "--max_queue", "2000", "--drain", "0") as server:
        port = int(server.grpc.rpartition(":")[2])
        asking = threading.Thread(target=lambda: found.update(call(port, 2000, timeout=90)))
        asking.start()
        time.sleep(0.3)
        assert server.stop(signal.SIGTERM)[0] == 0
        asking.join()
    assert "CANCELLED" not in found, found
    assert found.total() == 2000


if __name__ == "__main__":
    print(json.dumps(asyncio.run(flood(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))))
