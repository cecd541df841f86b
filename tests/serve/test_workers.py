"""Several worker processes behind the same ports: they answer as one server, are replaced, and stop together."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from run_fixtures import NAME, REPOSITORY, TinyWorkspace
from serve_fixtures import Server, command, encoded, put, running, serving

from pipeline.errors import BackendError

if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip("--workers needs Linux", allow_module_level=True)

from pipeline.serve.clients import Clients, Shares, TooMuchError
from pipeline.serve.ports import join, listen, reserve
from pipeline.serve.settings import Part
from pipeline.serve.shared_clients import SharedStore
from pipeline.serve.siblings import merge

CLASSIFY = f"/v2/models/{NAME}/classify"
# A worker has one core of this machine's, so that tests of two take what one server takes.
FLAGS = ("--workers", "2", "-b", "2", "--drain", "0.5")


def children_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) if folder.name.isdigit() else -1
        except OSError:  # it has ended
            continue
        if parent == pid:
            found.append(int(folder.name))
    return sorted(found)


def workers_of(server: Server) -> list[int]:
    """Return the server's grandchildren: workers are forked from a child that forks only."""
    return [pid for child in children_of(server.process.pid) for pid in children_of(child)]


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen")


def listeners(address: str) -> int:
    """Return how many sockets listen on a port of this machine."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return sum(1 for fields in lines if fields[1].endswith(port) and fields[3] == "0A")


@pytest.mark.slow
def test_workers_answer_as_one_server(tiny_workspace_master: TinyWorkspace) -> None:
    with running(tiny_workspace_master.package, *FLAGS) as server:
        assert len(workers_of(server)) == listeners(server.http) == listeners(server.grpc) == 2
        wanted = server.post(CLASSIFY, encoded(0))
        assert wanted[0] == 200
        # Each on a connection of its own: the chance that one worker gets all is one in 2^38.
        assert all(server.post(CLASSIFY, encoded(0)) == wanted for _ in range(39))
        assert server.metric(f'pipeline_images_total{{model="{NAME}"}}') == 40
        assert server.metric(f'pipeline_decode_seconds_count{{model="{NAME}"}}') == 40
        assert server.metric("pipeline_workers") == 2
        assert server.metric("pipeline_worker_restarts_total") == 0
        assert server.metric("process_resident_memory_bytes") > 50e6
        assert server.metric("process_cpu_seconds_total") > 0.5
        for _ in range(4):
            (found,) = server.get_json("/v2/models/stats")["model_stats"]
            assert (found["inference_count"], found["inference_stats"]["success"]["count"]) == (40, 40)
            assert sum(each["compute_infer"]["count"] for each in found["batch_stats"]) == found["execution_count"]
        assert server.stop() == (0, "stopping: clients have 0.5 s to leave\nstopped\n")


@pytest.mark.slow
def test_workers_answer_over_grpc(tiny_workspace_master: TinyWorkspace) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    with running(tiny_workspace_master.package, *FLAGS) as server:
        for _ in range(6):
            client = triton.InferenceServerClient(
                server.grpc,
                channel_args=[("grpc.use_local_subchannel_pool", 1)],  # else clients share a connection
            )
            assert client.is_server_ready()
            assert client.is_model_ready(NAME, "1")
            assert client.get_inference_statistics(NAME).model_stats[0].name == NAME
            client.close()


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_counted(tiny_workspace_master: TinyWorkspace) -> None:
    with running(tiny_workspace_master.package, *FLAGS) as server:
        for _ in range(10):
            assert server.post(CLASSIFY, encoded(0))[0] == 200
        first, second = workers_of(server)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: first not in workers_of(server))
        # Meanwhile the other answers; the kernel gives it all new connections.
        assert all(server.post(CLASSIFY, encoded(0))[0] == 200 for _ in range(10))
        wait_until(lambda: server.metric("pipeline_workers") == 2)
        assert server.metric("pipeline_worker_restarts_total") == 1
        assert server.metric(f'pipeline_images_total{{model="{NAME}"}}') == 20  # with those of the dead one
        replacement, *_ = set(workers_of(server)) - {second}
        assert listeners(server.http) == 2
        code, out = server.stop()
    assert code == 0
    (line,) = [line for line in out.splitlines() if f"(process {first}) ended" in line]
    assert line.endswith(f"(process {first}) ended: signal 9 (SIGKILL); it is replaced")
    assert f"{NAME} version 1" in out  # the replacement loaded it
    assert replacement != first


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_request_is_lost_while_workers_stop(tiny_workspace_master: TinyWorkspace, number: signal.Signals) -> None:
    outcomes: Counter[str] = Counter()

    def ask(server: Server) -> None:
        while True:
            try:
                status, answer = server.post(CLASSIFY, encoded(0))
            except ConnectionRefusedError:
                outcomes["refused"] += 1
                return
            except OSError as err:
                outcomes[f"lost: {err}"] += 1
                return
            outcomes["answered" if status == 200 else answer["error"]] += 1
            if status != 200:
                return

    with running(tiny_workspace_master.package, *FLAGS) as server:
        clients = [threading.Thread(target=ask, args=(server,)) for _ in range(6)]
        for client in clients:
            client.start()
        time.sleep(1)
        for pid in workers_of(server):  # as systemd does
            os.kill(pid, number)
        assert server.stop(number)[0] == 0
        for client in clients:
            client.join()
    assert set(outcomes) <= {"answered", "refused", "the server is stopping"}, outcomes
    assert outcomes["answered"] > 10
    assert sum(outcomes.values()) - outcomes["answered"] == len(clients)


@pytest.mark.slow
def test_workers_swap_packages_without_a_lost_request(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> None:
    package, faults, finished = tiny_workspace_master.package, [], threading.Event()
    put(package, tmp_path / NAME / "1")
    with serving(tmp_path, *FLAGS) as told:

        def ask() -> None:
            while not finished.is_set():
                status, answer = told.server.post(CLASSIFY, encoded(0))
                if status != 200:
                    faults.append(answer)

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        before = told.score()
        put(package, tmp_path / NAME / "2", shift=30.0)
        told.server.process.send_signal(signal.SIGHUP)
        for number in (1, 2):
            told.wait_for(rf"^worker {number}: {NAME} version 1: unloaded")
        finished.set()
        for client in clients:
            client.join()
        assert not faults
        assert before < 0.999
        assert all(told.score() > 0.999 for _ in range(10))


@pytest.mark.slow
def test_limits_of_a_client_hold_for_all_workers_together(tiny_workspace_master: TinyWorkspace) -> None:
    with running(tiny_workspace_master.package, *FLAGS, "--client_rate", "1", "--client_mib", "1") as server:
        begun = time.monotonic()
        statuses = [server.post(CLASSIFY, encoded(0))[0] for _ in range(20)]
        allowed = 2 + int(time.monotonic() - begun) + 1  # two seconds' worth at once, and one a second
    assert set(statuses) == {200, 429}
    assert 2 <= statuses.count(200) <= allowed


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Callable[[Part], SharedStore]]:
    """Opens the table of a worker."""
    with ExitStack() as opened:
        yield lambda part: opened.enter_context(closing(SharedStore(tmp_path / "clients", part)))


def test_shared_accounts_are_those_of_all_workers_until_they_are_replaced(
    sharing: Callable[[Part], SharedStore],
) -> None:
    now = 100.0
    first, second = (Clients(Shares(2, 4.0, 1000), lambda: now, sharing(Part(number, 2))) for number in range(2))
    first.enter("a")
    second.enter("a")
    for clients in (first, second):
        with pytest.raises(TooMuchError, match="more than 2 requests of one client under way"):
            clients.enter("a")
        clients.enter("b")
    first.leave("a", 5000)
    with pytest.raises(TooMuchError, match="more than 1000 bytes a second"):
        second.enter("a")
    now += 3.5
    second.enter("a")  # of its own two under way
    with pytest.raises(TooMuchError, match="under way"):
        first.enter("a")
    replacement = Clients(Shares(2, 4.0, 1000), lambda: now, sharing(Part(1, 2)))
    replacement.enter("a")  # what the dead one had under way is no more
    replacement.enter("a")
    with pytest.raises(TooMuchError, match="under way"):
        first.enter("a")


def test_shared_accounts_forget_who_was_idle_for_longest(
    sharing: Callable[[Part], SharedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.serve.shared_clients._SLOTS", 3)
    monkeypatch.setattr("pipeline.serve.shared_clients._WINDOW", 3)
    clock = iter(range(1000))
    clients = Clients(Shares(1), lambda: next(clock), sharing(Part(0, 1)))
    clients.enter("busy")
    for name in ("b", "c", "d", "e"):
        clients.enter(name)
        clients.leave(name, 0)
    with pytest.raises(TooMuchError):
        clients.enter("busy")
    clients.enter("e")
    with pytest.raises(TooMuchError):
        clients.enter("e")


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tiny_workspace_master: TinyWorkspace) -> None:
    with running(tiny_workspace_master.package, *FLAGS) as server:
        workers = workers_of(server)
        server.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


@pytest.mark.slow
def test_faults_of_workers_are_a_line(tiny_workspace_master: TinyWorkspace) -> None:
    def fault(*flags: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        asked = [*command(tiny_workspace_master.package), "--workers", "2", *flags]
        done = subprocess.run(asked, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 2
        lines = [line for line in done.stderr.splitlines() if "sample weights" not in line]
        assert len(lines) == 1, done.stderr
        return lines[0]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = f"error: 127.0.0.1, port {port}: cannot be listened on (Address already in use); give another"
        assert fault("--http_port", str(port)) == f"{wanted} --http_port"
        assert fault("--grpc_port", str(port)) == f"{wanted} --grpc_port"
    assert "fewer than the 8 images of a batch" in fault("--max_queue", "4", "-b", "8")
    assert "--tokens" in fault("--host", "0.0.0.0")


def test_reserve_holds_a_port_that_only_those_who_join_may_have() -> None:
    with ExitStack() as opened:
        port = opened.enter_context(reserve("127.0.0.1", 0, "--http_port"))
        for _ in range(2):
            opened.enter_context(join("127.0.0.1", port)).listen()
        with pytest.raises(BackendError, match=f"port {port}: cannot be listened on"), listen("127.0.0.1", port):
            pass
        with pytest.raises(BackendError, match="give another --http_port"):
            reserve("127.0.0.1", port, "--http_port").__enter__()
        # Who holds the port and does not listen gets no connections.
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
    with listen("127.0.0.1", port):
        pass


@pytest.mark.parametrize(("total", "workers", "shares"), [(8, 3, [3, 3, 2]), (2, 2, [1, 1]), (2, 3, [1, 1, 1])])
def test_parts_share_out_a_total_and_have_one_at_least(total: int, workers: int, shares: list[int]) -> None:
    assert [Part(number, workers).share(total) for number in range(workers)] == shares


def test_merge_sums_statistics_by_model_and_batch() -> None:
    def duration(count: int) -> dict[str, int]:
        return {"count": count, "ns": 10 * count}

    def model(name: str, last: int, count: int, *batches: tuple[int, int]) -> dict[str, object]:
        return {
            "name": name,
            "version": "1",
            "last_inference": last,
            "inference_count": count,
            "inference_stats": {"success": duration(count)},
            "batch_stats": [{"batch_size": size, "compute_infer": duration(number)} for size, number in batches],
        }

    found = merge([model("b", 7, 1, (1, 1), (4, 2))], [model("b", 5, 2, (2, 3), (4, 5)), model("a", 1, 1)])
    assert found == [model("a", 1, 1), model("b", 7, 3, (1, 1), (2, 3), (4, 7))]
