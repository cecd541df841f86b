"""The server under load, beside the same package in `bench`, in turn.

    pip install '.[serve,dev]'
    python benchmarks/serving.py load -m deploy_weights/FOLDER/NAME --images DIR --clients 64
    python benchmarks/serving.py stop -m deploy_weights/FOLDER/NAME
    python benchmarks/serving.py workers -m deploy_weights/FOLDER/NAME --images DIR --workers 1 2

load: throughput and latency of so many clients, each of which sends its next request when it has the answer to the one
before: tensors over gRPC and over REST, image files over gRPC and as uploads. The clients run on the same cores as the
server, so they send bytes that were made before, over plain sockets (`--grpc_client grpc`: by gRPC's own client for
Python, which takes three times as much CPU time). It prints the CPU time of a request on either side, beside that of an
image in `bench` (which neither receives nor decodes anything) and in `predict` (which decodes the same files). CPU time
is what a busy machine changes least. stop: SIGTERM under load; counts what was asked, answered, refused and lost.
workers: throughput, CPU time and memory by the number of worker processes, for a package whose network takes no time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grpc
import numpy as np
import offline
import tritonclient.grpc as triton_grpc
import uvloop
from clients import Http, RefusedError, Rpc, prefixed
from common import exit_code
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from pipeline.data import preprocess
from pipeline.errors import PipelineError
from pipeline.packages.package import Package, open_package
from pipeline.run.inputs import find_images
from pipeline.runtimes.base import Runtime

Ask = Callable[[int], Awaitable[object]]  # sends request number n and waits for its answer
KINDS = ("grpc tensor", "rest tensor", "grpc file", "rest upload")
FILE_KINDS = KINDS[2:]
_CHANNELS = 8
_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    http: str  # host:port
    grpc: str


@contextmanager
def running(package: Package, flags: Sequence[str]) -> Iterator[Server]:
    command = [sys.executable, "-m", "pipeline", "serve", "-m", str(package.prefix)]
    with subprocess.Popen(
        [*command, "--http_port=0", "--grpc_port=0", *flags], stdout=subprocess.PIPE, text=True
    ) as it:
        try:
            assert it.stdout is not None
            for line in it.stdout:
                if found := re.search(r"http://(\S+) and grpc://(\S+)", line):
                    yield Server(it, *found.groups())
                    return
            raise PipelineError("the server did not start")
        finally:
            it.terminate()


class Clients:
    """What sends requests of each kind; made within a running event loop."""

    def __init__(
        self,
        server: Server,
        package: Package,
        tensor: np.ndarray,
        files: Sequence[bytes],
        count: int,
        *,
        by_grpc: bool = False,
    ) -> None:
        """Prepare to ask.

        Args:
            by_grpc: send calls by gRPC's own client.
        """
        path, (takes, gives) = f"/v2/models/{package.name}", names_of(server, package.name)
        uploads = [_post(f"{path}/classify", {}, file) for file in files]
        self._bodies: dict[str, list[bytes]] = {
            "grpc tensor": [_message(package.name, takes, tensor, gives)],
            "rest tensor": [_binary(f"{path}/infer", takes, tensor, gives)],
            "grpc file": [_message(package.name, "encoded_image", np.array([file], object), gives) for file in files],
            "rest upload": uploads,
        }
        channels = min(count, _CHANNELS)
        if not by_grpc:
            for kind in ("grpc tensor", "grpc file"):
                self._bodies[kind] = [prefixed(each) for each in self._bodies[kind]]
        self._rpcs = [] if by_grpc else [Rpc(server.grpc, _INFER) for _ in range(channels)]
        # Else all channels share one connection, and one worker answers it.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(server.grpc, options) for _ in range(channels if by_grpc else 0)]
        self._calls = [each.unary_unary(_INFER) for each in self._channels]
        self._connections = [Http(server.http) for _ in range(count)]

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(each.close() for each in self._channels))
        for connection in (*self._connections, *self._rpcs):
            connection.close()

    def of(self, kind: str) -> Ask:
        bodies = self._bodies[kind]

        async def over_grpc(number: int) -> None:
            if self._rpcs:
                await self._rpcs[number % len(self._rpcs)].ask(bodies[number % len(bodies)])
                return
            try:
                await self._calls[number % len(self._calls)](bodies[number % len(bodies)])
            except grpc.aio.AioRpcError as err:
                refused = "stopping" in (err.details() or "") or "refused" in (err.details() or "")
                raise RefusedError(err.details()) if refused else PipelineError(str(err.details())) from None

        async def over_http(number: int) -> None:
            connection = self._connections[number % len(self._connections)]
            try:
                await connection.ask(bodies[number % len(bodies)])
            except ConnectionRefusedError as err:
                raise RefusedError(str(err)) from None

        return over_grpc if kind.startswith("grpc") else over_http


def names_of(server: Server, model: str) -> tuple[str, str]:
    """Return the names of the model's own input and output."""
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}") as answer:
        found = json.load(answer)
    return found["inputs"][0]["name"], found["outputs"][0]["name"]


def _message(model: str, name: str, array: np.ndarray, output: str) -> bytes:
    """Return a request over gRPC for one output."""
    given = triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    request = service_pb2.ModelInferRequest(model_name=model, inputs=[given._get_tensor()])
    request.raw_input_contents.append(given._get_content())
    request.outputs.add(name=output)
    return bytes(request.SerializeToString())


def _binary(path: str, name: str, array: np.ndarray, output: str) -> bytes:
    """Return a request over REST with the tensor's bytes behind the JSON, for one output in the same form."""
    content = array.tobytes()
    tensor = {"name": name, "shape": list(array.shape), "datatype": np_to_triton_dtype(array.dtype)}
    head = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}],
        "outputs": [{"name": output, "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    return _post(path, {"inference-header-content-length": len(text)}, text + content)


def _post(path: str, headers: dict[str, object], body: bytes) -> bytes:
    lines = "".join(f"{key}: {value}\r\n" for key, value in {**headers, "content-length": len(body)}.items())
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n".encode() + body


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants."""
    ticks = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Return the memory of a process and its descendants; what they share counts once."""
    texts = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(pid)]
    return sum(int(size) for text in texts for size in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)) / 1024


@dataclass
class Load:
    """What so many clients got."""

    rate: float  # answers/s
    latencies: list[float]  # s
    server_ms: float  # CPU time of an answer
    client_ms: float


async def measure(server: Server, package: Package, load: Inputs, kind: str, args: argparse.Namespace) -> Load:
    by_grpc = args.grpc_client == "grpc"
    async with Clients(server, package, load.tensor, load.files, args.clients, by_grpc=by_grpc) as clients:
        ask = clients.of(kind)
        await keep_asking(ask, args.clients, 1.0)
        begun, own, theirs = time.perf_counter(), time.process_time(), cpu_seconds(server.process.pid)
        latencies = await keep_asking(ask, args.clients, args.seconds)
        passed, own, theirs = (
            time.perf_counter() - begun,
            time.process_time() - own,
            cpu_seconds(server.process.pid) - theirs,
        )
    return Load(len(latencies) / passed, latencies, theirs / len(latencies) * 1000, own / len(latencies) * 1000)


async def keep_asking(ask: Ask, clients: int, seconds: float) -> list[float]:
    """Return the latency of each request that was sent in `seconds`, in s."""
    answered: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        while (sent := time.perf_counter()) < end:
            await ask(number)
            answered.append(time.perf_counter() - sent)
            number += clients

    await asyncio.gather(*(client(number) for number in range(clients)))
    return answered


@dataclass(frozen=True)
class Inputs:
    """What clients send: a prepared tensor, and image files."""

    tensor: np.ndarray
    files: list[bytes]


def read_inputs(package: Package, args: argparse.Namespace) -> Inputs:
    files = [path.read_bytes() for path in find_images([args.images])[:200]]
    return Inputs(preprocess.load(package.preprocess(), files[0], raw=package.takes_pixels)[None], files)


def under_load(args: argparse.Namespace) -> None:
    package = open_package(args.model)
    inputs = read_inputs(package, args)
    bench: list[offline.Load] = []
    predict: list[offline.Load] = []
    found: dict[str, list[Load]] = {}
    for turn in range(args.turns):
        same = (package.prefix, args.batch)
        bench.append(offline.apart(offline.measure_bench, *same, args.instances, args.runtime, args.seconds))
        predict.append(offline.apart(offline.measure_predict, *same, args.runtime, args.images, args.seconds))
        with running(package, flags(args)) as server:
            for kind in args.kinds:
                found.setdefault(kind, []).append(uvloop.run(measure(server, package, inputs, kind, args)))
        print(f"turn {turn + 1} of {args.turns} done", file=sys.stderr)
    print(f"{package.name}, -b {args.batch} -i {args.instances} --runtime {args.runtime}, {args.clients} clients")
    for name, offlines in (("bench", bench), ("predict", predict)):
        rate, cpu_ms = median(each.rate for each in offlines), [each.cpu_ms for each in offlines]
        print(f"{name:12} {rate:.1f} images/s  CPU of an image: {spread(cpu_ms, 'ms')}")
    for kind, loads in found.items():
        print(f"{kind:12} {describe(loads)}")
        print(f"{'':12} {compare(loads, bench)} of bench")
        if kind in FILE_KINDS:
            print(f"{'':12} {compare(loads, predict)} of predict")


def compare(loads: Sequence[Load], others: Sequence[offline.Load]) -> str:
    """Return the ratios of the turns: of CPU times, and of throughput."""
    pairs = list(zip(loads, others, strict=True))
    alone = [other.cpu_ms / load.server_ms for load, other in pairs]
    both = [other.cpu_ms / (load.server_ms + load.client_ms) for load, other in pairs]
    rates = [load.rate / other.rate for load, other in pairs]
    return f"by CPU {spread(alone, 'x')}, with the clients' {spread(both, 'x')}; throughput {spread(rates, 'x')}"


def spread(values: Sequence[float], unit: str) -> str:
    return f"{median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


def describe(loads: Sequence[Load]) -> str:
    latencies = [each for load in loads for each in load.latencies]
    p50, p99 = (float(np.percentile(latencies, share)) * 1000 for share in (50, 99))
    server, client = median(load.server_ms for load in loads), median(load.client_ms for load in loads)
    return (
        f"{median(load.rate for load in loads):7.1f} answers/s  p50 {p50:.1f} ms  p99 {p99:.1f} ms  "
        f"CPU of an answer: server {server:.2f} ms, client {client:.2f} ms"
    )


def by_workers(args: argparse.Namespace) -> None:
    package = open_package(args.model)
    inputs = read_inputs(package, args)
    found: dict[tuple[str, int], list[Load]] = {}
    memory: dict[int, list[float]] = {}
    for _ in range(args.turns):
        for count in args.workers:
            with running(package, [*flags(args), f"--workers={count}"]) as server:
                for kind in args.kinds:
                    load = uvloop.run(measure(server, package, inputs, kind, args))
                    found.setdefault((kind, count), []).append(load)
                memory.setdefault(count, []).append(memory_mib(server.process.pid))
    for count in args.workers:
        print(f"{count} workers: {median(memory[count]):.0f} MiB")
    for (kind, count), loads in sorted(found.items()):
        print(f"{kind:12} {count} workers {describe(loads)}")


def under_stop(args: argparse.Namespace) -> None:
    package = open_package(args.model)
    tensor = np.zeros((1, *package.input_chw), np.uint8 if package.takes_pixels else np.float32)
    for kind in KINDS[:2]:
        for turn in range(args.turns):
            with running(package, [*flags(args), f"--workers={args.workers[-1]}"]) as server:
                counts = uvloop.run(_stopped_while_asked(server, package, kind, tensor, args))
                code = server.process.wait(60)
            said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            print(f"{kind}, turn {turn + 1}: {said}; exit code {code}")


async def _stopped_while_asked(
    server: Server, package: Package, kind: str, tensor: np.ndarray, args: argparse.Namespace
) -> Counter[str]:
    """Return how many requests were answered, refused in words, met a closed door, or were lost."""
    counts: Counter[str] = Counter()
    by_grpc = args.grpc_client == "grpc"
    async with Clients(server, package, tensor, [], args.clients, by_grpc=by_grpc) as clients:
        ask = clients.of(kind)

        async def client(number: int) -> None:
            while True:
                try:
                    await ask(number)
                except RefusedError:
                    counts["refused"] += 1
                    return
                except (PipelineError, OSError, EOFError) as err:
                    counts[f"lost ({err})"] += 1
                    return
                counts["answered"] += 1

        everyone = asyncio.gather(*(client(number) for number in range(args.clients)))
        await asyncio.sleep(args.seconds)
        server.process.send_signal(signal.SIGTERM)
        await everyone
    return counts


def flags(args: argparse.Namespace) -> list[str]:
    return [f"-b={args.batch}", f"-i={args.instances}", f"--runtime={args.runtime}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "stop", "workers"))
    parser.add_argument("-m", "--model", type=Path, metavar="PREFIX")
    parser.add_argument("--images", type=Path, metavar="DIR", help="image files, for load and workers")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--grpc_client",
        choices=("plain", "grpc"),
        default="plain",
        help="what sends calls over gRPC: HTTP/2 as plain as the client of HTTP/1.1, or gRPC's own in Python",
    )
    parser.add_argument("-b", "--batch", type=int, default=8)
    parser.add_argument("-i", "--instances", type=int, default=2)
    parser.add_argument("--runtime", choices=[each.value for each in Runtime], default="auto")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of requests, for load and workers")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="to compare; stop: the last"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.what != "stop" and args.images is None:
        parser.error(f"{args.what}: give --images")
    return exit_code(lambda: {"load": under_load, "stop": under_stop, "workers": by_workers}[args.what](args))


if __name__ == "__main__":
    sys.exit(main())
