"""A folder of packages: names and versions, loaded, replaced, refused and unloaded while clients ask."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import NAME, REPOSITORY, TinyWorkspace
from serve_fixtures import Running, encoded, put, serving

from pipeline.artefacts import MANIFEST
from pipeline.errors import ArtefactError
from pipeline.packages.package import FACTS
from pipeline.serve.model_folder import find_packages, is_version

needs_server = pytest.mark.skipif(
    importlib.util.find_spec("kserve") is None, reason="serve's packages are not installed: pip install '.[serve]'"
)


@pytest.mark.slow
@needs_server
def test_names_and_versions_are_those_of_the_folder(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> None:
    package = tiny_workspace_master.package
    put(package, tmp_path / "whatever")
    (tmp_path / "2nd").mkdir()
    for version, shift in (("1", 1.0), ("2", 2.0), ("10", 30.0)):
        put(package, tmp_path / "2nd" / version, shift=shift, name="second")
    (tmp_path / "2nd" / "draft").mkdir()
    with serving(tmp_path, "--versions", "2") as running:
        assert running.get("/v2/models")[1] == {"models": ["second", NAME]}
        assert running.get("/v2/models/second")[1]["versions"] == ["2", "10"]
        assert running.get(f"/v2/models/{NAME}")[1]["versions"] == ["1"]
        assert running.score("/v2/models/second") > 0.999
        assert running.score("/v2/models/second") == running.score("/v2/models/second/versions/10")
        assert running.score() < running.score("/v2/models/second/versions/2") < 0.999
        status, answer = running.get("/v2/models/second/versions/1")
        assert (status, answer) == (404, {"error": "model 'second' has no version '1'; it has version 2, 10"})
        assert running.get("/v2/models/none/ready")[0] == 404
        assert [(each["name"], each["version"]) for each in running.get("/v2/models/stats")[1]["model_stats"]] == [
            ("second", "2"),
            ("second", "10"),
            (NAME, "1"),
        ]
        line = running.wait_for("^second version 10 from")
        assert re.search(r"memory \d+ MiB, \d+ of it new", line)


@pytest.mark.slow
@needs_server
def test_a_new_version_takes_over_without_a_lost_request(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> None:
    package, versions = tiny_workspace_master.package, tmp_path / NAME
    versions.mkdir()
    put(package, versions / "1")
    outcomes: Counter[Any] = Counter()
    over = threading.Event()

    def ask(running: Running) -> None:
        connection = http.client.HTTPConnection(running.server.http, timeout=60)
        while not over.is_set():
            connection.request("POST", f"/v2/models/{NAME}/classify?topk=1", encoded(0))
            answer = connection.getresponse()
            found = json.loads(answer.read())
            outcomes[answer.status if answer.status != 200 else round(found[0]["scores"][0], 3)] += 1
        connection.close()

    with serving(tmp_path) as running:
        before = running.server.post(f"/v2/models/{NAME}/classify?topk=1", encoded(0))[1][0]["scores"][0]
        clients = [threading.Thread(target=ask, args=(running,)) for _ in range(3)]
        for client in clients:
            client.start()
        put(package, versions / "2", shift=30.0)
        running.wait_for(f"^{NAME} version 2 from")
        running.wait_for(f"^{NAME} version 1: unloaded")
        put(package, versions / "2")  # replaced in its place
        since = len(running.said)
        running.server.process.send_signal(signal.SIGHUP)
        running.wait_for(f"^{NAME} version 2 from", since)
        time.sleep(0.5)
        over.set()
        for client in clients:
            client.join()
        assert running.get(f"/v2/models/{NAME}")[1]["versions"] == ["2"]
    assert set(outcomes) == {round(before, 3), 1.0}, outcomes
    assert min(outcomes.values()) > 0


@pytest.mark.slow
@needs_server
def test_a_package_that_does_not_verify_is_refused_and_the_old_one_stays(
    tiny_workspace_master: TinyWorkspace, tmp_path: Path
) -> None:
    package, versions = tiny_workspace_master.package, tmp_path / NAME
    versions.mkdir()
    put(package, versions / "1")

    def spoil(folder: Path) -> None:
        with (folder / f"{NAME}.onnx").open("ab") as stream:
            stream.write(b"more")

    with serving(tmp_path) as running:
        before = running.score()
        put(package, tmp_path / "good", shift=30.0)
        spoil(tmp_path / "good")
        (tmp_path / "good").rename(versions / "2")
        line = running.wait_for("refused")
        assert "2: refused; the one from before stays: " in line
        assert "sha256 differs" in line
        time.sleep(4.5)  # two more looks
        assert sum("refused" in each for each in running.said) == 1
        assert running.score() == before
        assert running.get(f"/v2/models/{NAME}/versions/2/ready")[0] == 404
        put(package, versions / "2", shift=30.0)
        running.wait_for(f"^{NAME} version 2 from")
        assert running.score() > 0.999
        shutil.rmtree(versions / "2")  # the one of before comes back
        running.wait_for(f"^{NAME} version 2: unloaded")
        assert running.score() == before


@pytest.mark.slow
@needs_server
def test_a_package_that_is_copied_file_by_file_is_served_when_it_is_whole(
    tiny_workspace_master: TinyWorkspace, tmp_path: Path
) -> None:
    package, versions = tiny_workspace_master.package, tmp_path / NAME
    versions.mkdir()
    put(package, versions / "1")
    put(package, tmp_path / ".whole", shift=30.0)
    first = [MANIFEST, FACTS]
    others = sorted(each.name for each in (tmp_path / ".whole").iterdir() if each.name not in first)
    with serving(tmp_path) as running:
        (versions / "2").mkdir()
        for name in [*first, *others[:-1]]:
            shutil.copy(tmp_path / ".whole" / name, versions / "2" / name)
        running.wait_for("refused")
        assert running.get(f"/v2/models/{NAME}")[1]["versions"] == ["1"]
        shutil.copy(tmp_path / ".whole" / others[-1], versions / "2" / others[-1])
        running.wait_for(f"^{NAME} version 2 from")
        running.wait_for(f"^{NAME} version 1: unloaded")
        assert sum("refused" in each for each in running.said) == 1
        assert running.score() > 0.999


@pytest.mark.slow
@needs_server
def test_a_folder_without_a_package_is_an_error(tmp_path: Path) -> None:
    def fault(*flags: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "pipeline", "serve", *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 2
        return done.stderr

    assert f"--models {tmp_path}: no package there" in fault("--models", str(tmp_path))
    assert "none: no such folder" in fault("--models", str(tmp_path / "none"))
    assert "give one of them" in fault("--models", str(tmp_path), "-m", "x")
    assert "--versions 2: needs --models" in fault("--versions", "2")


def make(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name}))
    (folder / MANIFEST).write_text("{}")


def test_find_packages_reads_both_layouts(tmp_path: Path) -> None:
    make(tmp_path / "b-int8-vacc", "b")
    make(tmp_path / "a" / "2", "a")
    make(tmp_path / "a" / "10", "a")
    for other in (".a.partial", "a/.3", "a/04", "a/x", "a/0", "a/-1"):
        make(tmp_path / other, "a")
    (tmp_path / "a" / "5").mkdir()
    (tmp_path / "file").write_text("")
    found = [(each.name, each.version, each.folder.name) for each in find_packages(tmp_path)]
    assert found == [("a", "2", "2"), ("a", "10", "10"), ("b", "1", "b-int8-vacc")]
    before = find_packages(tmp_path)
    make(tmp_path / "new", "b")
    (tmp_path / "b-int8-vacc" / MANIFEST).unlink()
    (tmp_path / "new" / MANIFEST).rename(tmp_path / "b-int8-vacc" / MANIFEST)
    after = find_packages(tmp_path)
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    with pytest.raises(ArtefactError, match="no such folder"):
        find_packages(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "wanted"), [("1", True), ("10", True), ("0", False), ("01", False), ("-1", False), ("²", False)]
)
def test_is_version_takes_whole_numbers(name: str, wanted: bool) -> None:
    assert is_version(name) is wanted
