"""The server under load, beside the same package in `bench`, in turn.

    pip install '.[serve,dev]'
    python benchmarks/serving.py load -m deploy_weights/FOLDER/NAME --images DIR --clients 64
    python benchmarks/serving.py stop -m deploy_weights/FOLDER/NAME

load: throughput and latency of so many clients, each of which sends its next request when it has the answer to the one
before: tensors over gRPC and over REST, image files over gRPC and as uploads; the clients compute on the same cores as
the server. stop: SIGTERM under load; counts what was asked, answered, refused and lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from common import exit_code
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pipeline.data import preprocess
from pipeline.errors import PipelineError
from pipeline.packages.package import Package, open_package
from pipeline.run.inputs import find_images
from pipeline.runtimes.base import Runtime

Ask = Callable[[int], Awaitable[object]]  # sends request number n and waits for its answer
KINDS = ("grpc tensor", "rest tensor", "grpc file", "rest upload")
_CONNECTIONS = 64


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

    def __init__(self, server: Server, name: str, tensor: np.ndarray, files: Sequence[bytes]) -> None:
        self._name, self._tensor, self._files = name, tensor, files
        self._grpc = triton_grpc.InferenceServerClient(server.grpc)
        self._rest = triton_http.InferenceServerClient(server.http, conn_limit=_CONNECTIONS)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._upload = f"http://{server.http}/v2/models/{name}/classify"

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._grpc.close()
        await self._rest.close()
        await self._session.close()

    def of(self, kind: str) -> Ask:
        return {
            "grpc tensor": lambda number: self._infer(self._grpc, triton_grpc, self._given(triton_grpc)),
            "rest tensor": lambda number: self._infer(self._rest, triton_http, self._given(triton_http)),
            "grpc file": lambda number: self._infer(self._grpc, triton_grpc, self._file(number)),
            "rest upload": self._classify,
        }[kind]

    def _given(self, client: Any) -> Any:
        given = client.InferInput("input", list(self._tensor.shape), np_to_triton_dtype(self._tensor.dtype))
        given.set_data_from_numpy(self._tensor)
        return given

    def _file(self, number: int) -> Any:
        given = triton_grpc.InferInput("encoded_image", [1], "BYTES")
        given.set_data_from_numpy(np.array([self._files[number % len(self._files)]], dtype=object))
        return given

    async def _infer(self, client: Any, module: Any, given: Any) -> None:
        answer = await client.infer(self._name, [given], outputs=[module.InferRequestedOutput("output")])
        assert answer.as_numpy("output").shape[0] == 1

    async def _classify(self, number: int) -> None:
        async with self._session.post(self._upload, data=self._files[number % len(self._files)]) as answer:
            if answer.status != 200:
                raise InferenceServerException(await answer.text(), str(answer.status))
            assert len(await answer.json()) == 1


async def keep_asking(ask: Ask, clients: int, seconds: float) -> list[float]:
    """Return the latency of each request that was answered in `seconds`, in s. The first second before is left out."""
    answered: list[float] = []
    begun = time.perf_counter() + 1.0
    end = begun + seconds

    async def client(number: int) -> None:
        while (sent := time.perf_counter()) < end:
            await ask(number)
            finished = time.perf_counter()
            if begun <= finished < end:
                answered.append(finished - sent)
            number += clients

    await asyncio.gather(*(client(number) for number in range(clients)))
    return answered


def bench_rate(package: Package, args: argparse.Namespace) -> float:
    """Return images/s of `bench` under the server's own settings."""
    command = [sys.executable, "-m", "pipeline", "bench", "-m", str(package.prefix), "--quiet", "--json=-"]
    load = [f"-b={args.batch}", f"-i={args.instances}", f"--runtime={args.runtime}", f"--duration={args.seconds:g}"]
    done = subprocess.run([*command, *load], stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout)["performance"]["throughput"])


def under_load(args: argparse.Namespace) -> None:
    package = open_package(args.model)
    files = [path.read_bytes() for path in find_images([args.images])[:200]]
    tensor = preprocess.load(package.preprocess(), files[0], raw=package.takes_pixels)[None]

    async def measure(server: Server, kind: str) -> list[float]:
        async with Clients(server, package.name, tensor, files) as clients:
            return await keep_asking(clients.of(kind), args.clients, args.seconds)

    rates: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    for turn in range(args.turns):
        whole = bench_rate(package, args)
        rates.setdefault("bench", []).append(whole)
        with running(package, flags(args)) as server:
            for kind in KINDS:
                found = asyncio.run(measure(server, kind))
                rates.setdefault(kind, []).append(len(found) / args.seconds)
                ratios.setdefault(kind, []).append(len(found) / args.seconds / whole)
                latencies.setdefault(kind, []).extend(found)
        print(f"turn {turn + 1} of {args.turns} done", file=sys.stderr)
    print(f"{package.name}, -b {args.batch} -i {args.instances} --runtime {args.runtime}, {args.clients} clients")
    print(f"bench: {median(rates['bench']):.1f} images/s ({', '.join(f'{rate:.1f}' for rate in rates['bench'])})")
    for kind in KINDS:
        p50, p99 = (float(np.percentile(latencies[kind], share)) * 1000 for share in (50, 99))
        turns = ", ".join(f"{ratio:.2f}" for ratio in ratios[kind])
        print(
            f"{kind:12} {median(rates[kind]):7.1f} images/s  {median(ratios[kind]):.2f}x bench ({turns})  "
            f"p50 {p50:6.1f} ms  p99 {p99:6.1f} ms"
        )


def under_stop(args: argparse.Namespace) -> None:
    package = open_package(args.model)
    tensor = np.zeros((1, *package.input_chw), np.uint8 if package.takes_pixels else np.float32)
    for kind in KINDS[:2]:
        for turn in range(args.turns):
            with running(package, flags(args)) as server:
                counts = asyncio.run(_stopped_while_asked(server, package, kind, tensor, args))
                code = server.process.wait(60)
            said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            print(f"{kind}, turn {turn + 1}: {said}; exit code {code}")


async def _stopped_while_asked(
    server: Server, package: Package, kind: str, tensor: np.ndarray, args: argparse.Namespace
) -> Counter[str]:
    """Return how many requests were answered, refused in words, met a closed door, or were lost."""
    counts: Counter[str] = Counter()
    async with Clients(server, package.name, tensor, []) as clients:
        ask = clients.of(kind)

        async def client(number: int) -> None:
            while True:
                try:
                    await ask(number)
                except InferenceServerException as err:
                    refused = "refused" in str(err) or "stopping" in str(err) or "Connection refused" in str(err)
                    counts["refused" if refused else f"lost ({err})"] += 1
                    return
                except aiohttp.ClientConnectorError:
                    counts["refused"] += 1
                    return
                except aiohttp.ClientError as err:
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
    parser.add_argument("what", choices=("load", "stop"))
    parser.add_argument("-m", "--model", type=Path, metavar="PREFIX")
    parser.add_argument("--images", type=Path, metavar="DIR", help="image files, for load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("-b", "--batch", type=int, default=8)
    parser.add_argument("-i", "--instances", type=int, default=2)
    parser.add_argument("--runtime", choices=[each.value for each in Runtime], default="auto")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.what == "load" and args.images is None:
        parser.error("load: give --images")
    return exit_code(lambda: {"load": under_load, "stop": under_stop}[args.what](args))


if __name__ == "__main__":
    sys.exit(main())
