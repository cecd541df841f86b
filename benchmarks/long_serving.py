"""A server that is asked for an hour while its packages are swapped. `long_runs.py serve` runs it."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype
from watching import Sample, Watch, quota, slope, table, take

from pipeline.data import preprocess
from pipeline.errors import BackendError
from pipeline.packages.package import open_package
from pipeline.run.predict import Classifier

Scores = np.ndarray  # float32 [classes]
Ask = Callable[[int], Awaitable[Scores]]  # about image n

CAPACITY_S, CLIENTS = 20.0, 16  # how long, and by how many clients, the server's capacity is measured
PATIENCE_S = 60.0  # of a client
STEER_S = 10.0  # between two changes of the rate
EVERY_S = 5.0  # between two samples
REST_S = 10.0  # without a client, before and after
WARM_UP = 1 / 6  # of the run, left out of the slope
ALONE = 50  # every so many requests come over a connection of their own
DAMAGED = 10  # every so many swaps bring a package that is damaged
SAME = 2e-3  # largest difference of a probability; two packages differ by more in some image


@dataclass
class Outcome:
    """What became of the requests."""

    answered: Counter[int] = field(default_factory=Counter)  # by package
    refused: int = 0  # 429, 503, UNAVAILABLE, RESOURCE_EXHAUSTED
    late: int = 0  # not answered within PATIENCE_S
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # answers of neither package
    latencies_s: list[float] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return sum(self.answered.values()) + self.refused + self.late + len(self.lost) + len(self.wrong)


class Server:
    """`serve --models` in a process of its own, with a folder for temporary files of its own."""

    def __init__(self, models: Path, scratch: Path, flags: Sequence[str], before: Sequence[str]) -> None:
        command = [*before, sys.executable, "-m", "pipeline", "serve", "--models", str(models), *flags]
        self.process = subprocess.Popen(
            [*command, "--http_port=0", "--grpc_port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        self.said: list[str] = []
        self._known = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._known.wait(120) or not self.address:
            raise BackendError("the server did not start: " + " / ".join(self.said[-3:]))

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.address = ("", "")
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            if found := re.search(r"http://(\S+) and grpc://(\S+)", line):
                self.address = found[1], found[2]
                self._known.set()
        self._known.set()

    def count(self, pattern: str) -> int:
        """Return how many lines it has said of a kind."""
        return sum(re.search(pattern, line) is not None for line in self.said)


class Clients:
    """What asks the server, in five ways; made within a running event loop."""

    def __init__(self, server: Server, name: str, tensors: Sequence[np.ndarray], files: Sequence[bytes]) -> None:
        (self._http, self._rpc), self._name = server.address, name
        self._tensors, self._files = tensors, files
        self._grpc = triton_grpc.InferenceServerClient(self._rpc)
        self._rest = triton_http.InferenceServerClient(self._http, conn_limit=64)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._grpc.close()
        await self._rest.close()
        await self._session.close()

    def ways(self) -> list[Ask]:
        return [
            lambda n: self._infer(self._grpc, triton_grpc, self._tensor(triton_grpc, n)),
            lambda n: self._infer(self._rest, triton_http, self._tensor(triton_http, n)),
            lambda n: self._infer(self._grpc, triton_grpc, self._file(n)),
            lambda n: self._upload(self._session, n),
        ]

    async def alone(self, n: int) -> Scores:
        """Ask over connections of their own."""
        if n % (2 * ALONE):
            async with aiohttp.ClientSession() as session:
                return await self._upload(session, n)
        async with triton_grpc.InferenceServerClient(self._rpc) as client:
            return await self._infer(client, triton_grpc, self._tensor(triton_grpc, n))

    def _tensor(self, module: Any, n: int) -> Any:
        tensor = self._tensors[n % len(self._tensors)]
        given = module.InferInput("input", list(tensor.shape), np_to_triton_dtype(tensor.dtype))
        given.set_data_from_numpy(tensor)
        return given

    def _file(self, n: int) -> Any:
        given = triton_grpc.InferInput("encoded_image", [1], "BYTES")
        given.set_data_from_numpy(np.array([self._files[n % len(self._files)]], dtype=object))
        return given

    async def _infer(self, client: Any, module: Any, given: Any) -> Scores:
        wanted = [module.InferRequestedOutput("probabilities")]
        answer = await client.infer(self._name, [given], outputs=wanted)
        scores: Scores = answer.as_numpy("probabilities")[0]
        return scores

    async def _upload(self, session: aiohttp.ClientSession, n: int) -> Scores:
        url = f"http://{self._http}/v2/models/{self._name}/classify?topk=10"
        async with session.post(url, data=self._files[n % len(self._files)]) as answer:
            if answer.status != 200:
                raise InferenceServerException(await answer.text(), str(answer.status))
            (found,) = await answer.json()
        scores = np.zeros(len(found["scores"]), np.float32)
        scores[found["class_ids"]] = found["scores"]
        return scores

    async def images_counted(self) -> float:
        async with self._session.get(f"http://{self._http}/metrics") as answer:
            found = re.search(r"^pipeline_images_total\{[^}]*\} (\S+)$", await answer.text(), re.MULTILINE)
        return float(found[1]) if found else 0.0


class Judge:
    """Asks, and compares each answer with those of the packages outside the server."""

    def __init__(self, known: Sequence[np.ndarray]) -> None:
        """Take float32 [images, classes] of each package."""
        self._known, self.outcome = known, Outcome()

    async def ask(self, way: Ask, n: int) -> None:
        begun, found = time.perf_counter(), self.outcome
        try:
            scores = await asyncio.wait_for(way(n), PATIENCE_S)
        except (InferenceServerException, aiohttp.ClientError, grpc.RpcError, OSError, asyncio.TimeoutError) as err:
            if time.perf_counter() - begun >= PATIENCE_S:
                found.late += 1
            elif re.search(r"\b(429|503)\b|UNAVAILABLE|RESOURCE_EXHAUSTED", str(err)):
                found.refused += 1
            else:
                after = time.perf_counter() - begun
                found.lost.append(f"{type(err).__name__} after {after:.1f} s: {err}")
            return
        found.latencies_s.append(time.perf_counter() - begun)
        differences = [float(np.abs(each[n % len(each)] - scores).max()) for each in self._known]
        nearest = int(np.argmin(differences))
        if differences[nearest] > SAME:
            found.wrong.append(f"image {n % len(self._known[0])}: {differences} from the packages")
        else:
            found.answered[nearest] += 1


async def capacity(clients: Clients, judge: Judge, seconds: float) -> float:
    """Return the requests a second that were answered when each client waits for its answer."""
    end, ways = time.perf_counter() + seconds, clients.ways()

    async def client(n: int) -> None:
        while time.perf_counter() < end:
            await judge.ask(ways[n % len(ways)], n)
            n += CLIENTS + 1

    await asyncio.gather(*(client(n) for n in range(CLIENTS)))
    return judge.outcome.asked / seconds


@dataclass
class Rate:
    """How often clients ask."""

    a_second: float
    asked: list[float] = field(default_factory=list)  # the rates there were, one a turn

    async def steer(self, pid: int, load: float, cores: float) -> None:
        """Keep the process computing for a share of its cores' time, until cancelled."""
        spent = _cpu_s(pid)
        while True:
            self.asked.append(self.a_second)
            begun = time.perf_counter()
            await asyncio.sleep(STEER_S)
            before, spent = spent, _cpu_s(pid)
            share = (spent - before) / (time.perf_counter() - begun) / cores
            self.a_second *= min(1.1, max(0.7, load / share)) if share else 1.0


def _cpu_s(pid: int) -> float:
    found = take(pid, 0.0)
    return found.cpu_s if found is not None else 0.0


async def keep_asking(clients: Clients, judge: Judge, rate: Rate, seconds: float) -> None:
    """Send requests at a rate, whether or not earlier ones were answered; return when all are."""
    due, ways, waiting, n = time.perf_counter(), clients.ways(), set(), 0
    end = due + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(judge.ask(clients.alone if n % ALONE == 0 else ways[n % len(ways)], n))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
        n, due = n + 1, due + 1 / rate.a_second
    await asyncio.gather(*waiting)


async def swap_packages(server: Server, prefixes: Sequence[Path], models: Path, every_s: float) -> None:
    """Put a new version into the folder at each turn, remove the last but one, and send SIGHUP, until cancelled."""
    for version in range(2, 1_000_000):
        await asyncio.sleep(every_s / 2)
        server.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(every_s / 2)
        hidden = models / f".{version}"
        await asyncio.to_thread(shutil.copytree, prefixes[version % 2].parent, hidden)
        if version % DAMAGED == 0:
            with (hidden / f"{prefixes[0].name}.onnx").open("r+b") as model:
                model.seek(5000)
                model.write(b"damaged")
        hidden.rename(models / prefixes[0].name / str(version))
        for old in (models / prefixes[0].name).iterdir():
            if int(old.name) <= version - 2 - (version % DAMAGED == 1):
                await asyncio.to_thread(shutil.rmtree, old)


def answers_of(prefix: Path, files: Sequence[bytes], runtime: str) -> np.ndarray:
    """Return the probabilities of a package, float32 [images, classes], outside any server."""
    with tempfile.TemporaryDirectory() as folder, Classifier(prefix, runtime=runtime) as classifier:
        paths = []
        for index, content in enumerate(files):
            paths.append(Path(folder) / f"{index:04d}.jpg")
            paths[-1].write_bytes(content)
        classes = len(open_package(prefix).classes())
        rows = np.zeros((len(files), classes), np.float32)
        for row, found in zip(rows, classifier.predict(paths, topk=classes), strict=True):
            row[list(found.class_ids)] = found.scores
    return rows


@contextmanager
def started(prefixes: Sequence[Path], flags: Sequence[str], cores: float) -> Iterator[tuple[Server, Path, Path]]:
    """Yield a server of the first package as version 1, the folder of its models, and that of its temporary files."""
    with tempfile.TemporaryDirectory() as folder, quota(cores) as before:
        models, scratch = Path(folder) / "models", Path(folder) / "tmp"
        scratch.mkdir()
        shutil.copytree(prefixes[0].parent, models / prefixes[0].name / "1")
        server = Server(models, scratch, flags, before)
        try:
            yield server, models, scratch
        finally:
            server.process.kill()
            server.process.wait()


def serve_long(prefixes: Sequence[Path], files: Sequence[bytes], args: argparse.Namespace) -> None:
    """Print the figures of a long run.

    Raises:
        BackendError: the server did not start.
    """
    package = open_package(prefixes[0])
    spec = package.preprocess()
    tensors = [preprocess.load(spec, content, raw=package.takes_pixels)[None] for content in files]
    judges = [Judge([answers_of(prefix, files, args.runtime) for prefix in prefixes]) for _ in range(2)]
    with started(prefixes, [f"--runtime={args.runtime}"], args.quota) as (server, models, scratch):

        async def work() -> tuple[float, Rate, float]:
            async with Clients(server, package.name, tensors, files) as clients:
                most = await capacity(clients, judges[0], CAPACITY_S)
                rate = Rate(args.load * most)
                beside = [asyncio.create_task(swap_packages(server, prefixes, models, args.swap))]
                if args.quota:
                    beside.append(asyncio.create_task(rate.steer(server.process.pid, args.load, args.quota)))
                try:
                    await keep_asking(clients, judges[1], rate, args.minutes * 60)
                finally:
                    for task in beside:
                        task.cancel()
                return most, rate, await clients.images_counted()

        time.sleep(REST_S)
        rests = [take(server.process.pid, 0)]
        with Watch(server.process.pid, EVERY_S) as watch:
            most, rate, counted = asyncio.run(work())
        time.sleep(REST_S)
        rests.append(take(server.process.pid, 0))
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
        left = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
    report(args, watch.samples, rests, judges, most, rate, counted, server, code, left)


def report(
    args: argparse.Namespace,
    samples: Sequence[Sample],
    rests: Sequence[Sample],
    judges: Sequence[Judge],
    most: float,
    rate: Rate,
    counted: float,
    server: Server,
    code: int,
    left: Sequence[str],
) -> None:
    shown = [samples[min(len(samples) - 1, len(samples) * part // 6)] for part in range(7)]
    titles = ["minute", "memory, MiB", "file descriptors", "threads", "CPU, s"]
    rows = [
        [f"{s.seconds / 60:.0f}", f"{s.memory_mib:.1f}", str(s.descriptors), str(s.threads), f"{s.cpu_s:.0f}"]
        for s in shown
    ]
    print(table(titles, rows))
    found = judges[1].outcome
    answered = sum(found.answered.values())
    growth, error = slope(samples, samples[-1].seconds * WARM_UP)
    asked = (min(rate.asked), max(rate.asked)) if rate.asked else (rate.a_second,)
    p50, p99 = (1000 * float(np.percentile(found.latencies_s, share)) for share in (50, 99))
    in_all = answered + sum(judges[0].outcome.answered.values())
    facts = {
        "runtime": args.runtime,
        "cores of the server": f"{args.quota:g}" if args.quota else "all",
        "requests/s it took at first": f"{most:.1f}",
        f"requests/s asked for, at {args.load:.0%}": " to ".join(f"{each:.1f}" for each in asked),
        "asked; answered": f"{found.asked}; {answered} (by package: {dict(sorted(found.answered.items()))})",
        f"refused; not answered in {PATIENCE_S:.0f} s": f"{found.refused}; {found.late}",
        "lost; answered otherwise": f"{len(found.lost)}; {len(found.wrong)}",
        "answers; images the server counted": f"{in_all}; {counted:.0f}",
        "latency p50; p99": f"{p50:.0f} ms; {p99:.0f} ms",
        "versions loaded; unloaded; refused": "; ".join(
            str(server.count(pattern)) for pattern in (r"version \d+ from", ": unloaded", ": refused")
        ),
        "memory after warm-up": f"{growth:+.2f} MiB an hour (standard error {error:.2f})",
        "at rest, before and after": "; ".join(
            f"{each.descriptors} file descriptors, {each.threads} threads, {each.memory_mib:.0f} MiB" for each in rests
        ),
        "exit code; temporary files left": f"{code}; {len(left)} {' '.join(left[:5])}",
    }
    print(table(["", ""], [[name, text] for name, text in facts.items()]))
    for line in [*found.lost[:5], *found.wrong[:5], *judges[0].outcome.lost[:5], *judges[0].outcome.wrong[:5]]:
        print(line)
