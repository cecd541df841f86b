"""Ray's tokens: a run of our own leaves none behind, and a cluster that wants one is joined with it."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_fixtures import REPOSITORY

from pipeline.host.cluster_token import token_settings

HAS_RAY = importlib.util.find_spec("ray") is not None and importlib.util.find_spec("pyarrow") is not None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path


def test_token_settings_are_of_the_run_when_ray_is_its_own(home: Path) -> None:
    first, second = (token_settings(None) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_token_settings_leave_the_mode_that_the_user_chose(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_settings("127.0.0.1:1") == {}  # no token here
    (home / ".ray" / "auth_token").write_text("7" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token_settings("127.0.0.1:1") == token_settings(None) == {}


JOIN = """
import sys
from pipeline.errors import BackendError
from pipeline.host.cluster import Cluster
try:
    with Cluster(sys.argv[1] if len(sys.argv) > 1 else None).connect() as nodes:
        print("joined", nodes)
except BackendError as err:
    print(err)
"""


def join(home: Path, *address: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", JOIN, *address]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'ray[data]'")
def test_connect_joins_a_cluster_with_a_token_when_it_is_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert join(home).startswith("joined 1 node, ")
    assert not (home / ".ray" / "auth_token").exists()
    (home / ".ray" / "auth_token").write_text("7" * 64)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--port", str(port), "--num-cpus", "1", "--include-dashboard=false", "--block", "--disable-usage-stats"]
    log = home / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *flags], stdout=out, stderr=out
        ) as head,
    ):
        try:
            deadline = time.monotonic() + 90
            while "Ray runtime started" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert join(home, f"127.0.0.1:{port}") == "joined 1 node, 1 core"
            monkeypatch.setenv("RAY_AUTH_TOKEN", "8" * 64)
            text = join(home, f"127.0.0.1:{port}")
            assert text.startswith(f"--address 127.0.0.1:{port}: cannot be joined")
            assert text.endswith("(~/.ray/auth_token, or RAY_AUTH_TOKEN) must be that of its head")
        finally:
            head.terminate()
            head.wait(60)
