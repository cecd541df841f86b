"""A server of a tiny package, in a process of its own, and what tests ask of it."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image
from run_fixtures import REPOSITORY, draw

from pipeline.packages.package import Package


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    package: Package
    http: str
    grpc: str

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.http, timeout=30)
        try:
            connection.request("POST", path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.http, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out


def command(package: Package, *flags: str) -> list[str]:
    ports = ["--http_port=0", "--grpc_port=0"]
    return [sys.executable, "-m", "pipeline", "serve", "-m", str(package.prefix), *ports, *flags]


@contextmanager
def running(package: Package, *flags: str) -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command(package, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if found := re.search(r"https?://(\S+) and grpcs?://(\S+)", line):
                    yield Server(process, package, found[1], found[2])
                    break
            else:
                pytest.fail("".join(said))
        finally:
            process.kill()


def encoded(index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(draw(index).transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()
