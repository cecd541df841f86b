"""A server of a tiny package, in a process of its own, and what tests ask of it."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from run_fixtures import NAME, REPOSITORY, draw

from pipeline.artefacts import write_json, write_manifest
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

    def get_json(self, path: str) -> Any:
        status, text = self.get(path)
        assert status == 200, text
        return json.loads(text)

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


def connect(server: Server) -> socket.socket:
    """Connect to the server's REST port."""
    host, port = server.http.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer_of(connection: socket.socket | BinaryIO) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the next answer; a status of 0 where the connection ends.

    Args:
        connection: where further answers may follow at once, a stream of it.
    """
    stream = connection.makefile("rb") if isinstance(connection, socket.socket) else connection
    line = stream.readline()
    if not line:
        return 0, {}, b""
    headers = {}
    while (header := stream.readline().strip()) != b"":
        key, _, value = header.decode().partition(":")
        headers[key.lower()] = value.strip()
    return int(line.split()[1]), headers, stream.read(int(headers.get("content-length", 0)))


def request(body: bytes, *headers: str, path: str = f"/v2/models/{NAME}/classify") -> bytes:
    """Return a POST request as it is sent."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def put(package: Package, folder: Path, *, shift: float = 0.0, name: str = NAME) -> None:
    """Copy a package to where it is served from, all at once, with class 0 favoured by `shift`, under another name."""
    scratch = folder.parent / f".{folder.name}"
    shutil.copytree(package.folder, scratch)
    path = scratch / f"{NAME}.onnx"
    model = onnx.load(path)
    (output,) = model.graph.output
    last = next(node for node in model.graph.node if output.name in node.output)
    last.output[0] = "before"
    row = np.zeros(output.type.tensor_type.shape.dim[1].dim_value, np.float32)
    row[0] = shift
    model.graph.initializer.append(numpy_helper.from_array(row, "shift"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "shift"], [output.name], "favour"))
    path.unlink()
    onnx.save(model, scratch / f"{name}.onnx")
    facts = json.loads((scratch / "package.json").read_text(encoding="utf-8"))
    write_json(scratch / "package.json", {**facts, "name": name})
    write_manifest(scratch, "package")
    if folder.exists():
        old = folder.parent / f".{folder.name}.old"
        folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old)
    else:
        scratch.rename(folder)


@dataclass(frozen=True)
class Running:
    server: Server
    said: list[str]

    def wait_for(self, pattern: str, since: int = 0) -> str:
        """Return the first line that the server says from line `since` on."""
        for _ in range(300):
            for line in self.said[since:]:
                if re.search(pattern, line):
                    return line
            time.sleep(0.1)
        pytest.fail(f"no {pattern!r} in {self.said}")

    def score(self, path: str = f"/v2/models/{NAME}") -> float:
        """Return the score of class 0."""
        status, answer = self.server.post(f"{path}/classify?topk=99", encoded(0))
        assert status == 200, answer
        return float(answer[0]["scores"][answer[0]["class_ids"].index(0)])

    def get(self, path: str) -> tuple[int, Any]:
        status, text = self.server.get(path)
        return status, json.loads(text)


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Running]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    ports = ["--http_port=0", "--grpc_port=0", "-b", "1", "-i", "1"]
    command = [sys.executable, "-m", "pipeline", "serve", "--models", str(folder), *ports, *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        said: list[str] = []
        assert process.stdout is not None
        out = process.stdout
        reader = threading.Thread(target=lambda: said.extend(iter(out.readline, "")), daemon=True)
        reader.start()
        try:
            running = Running(Server(process, None, "", ""), said)  # type: ignore[arg-type]
            line = running.wait_for(r"^serving |^error")
            found = re.search(r"http://(\S+) and grpc://(\S+)", line)
            assert found, said
            yield Running(Server(process, None, found[1], found[2]), said)  # type: ignore[arg-type]
        finally:
            process.kill()
            reader.join()
