"""`--engine ray` gives what `--engine local` gives, on a Ray cluster of three nodes on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from run_fixtures import REPOSITORY, TinyWorkspace, draw, read_folder

from pipeline.commands import cli
from pipeline.errors import BackendError, ConfigError
from pipeline.host.cluster import Cluster
from pipeline.run.results import run_file

HAS_RAY = importlib.util.find_spec("ray") is not None and importlib.util.find_spec("pyarrow") is not None
HAS_S3 = all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask", "flask_cors"))


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts Ray."""
    absent = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'ray[data]'")
    marked: Callable[..., None] = pytest.mark.ray(pytest.mark.slow(absent(test)))
    return marked


NODES = 3
START_CLUSTER = f"""
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for _ in range({NODES}):
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
START_STORE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Helper:
    """A process that is there for some tests: what it said first, and its environment."""

    line: str
    env: Mapping[str, str]


def helper(code: str, wanted: Callable[[str], bool], env: Mapping[str, str]) -> Iterator[Helper]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = next(line.strip() for line in process.stdout if wanted(line))
        yield Helper(line, env)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helper]:
    """A server that speaks S3, where its packages are installed; the environment names it, as users do.

    A token of an earlier Ray lies in its home.
    """
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("7" * 64)
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(home)}
    if not HAS_S3:
        yield Helper("", env)
        return
    for server in helper(START_STORE, lambda line: line.startswith("http"), env):
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        yield Helper(server.line, {**env, **keys, "AWS_ENDPOINT_URL": server.line})


@pytest.fixture(scope="module")
def cluster(store: Helper) -> Iterator[Helper]:
    """A cluster that wants no token."""
    yield from helper(START_CLUSTER, lambda line: ":" in line, {**store.env, "RAY_AUTH_MODE": "disabled"})


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(store: Helper, tmp_path: Path) -> Run:
    """Return a function that runs a command in `tmp_path` to its end."""

    def to_its_end(*arguments: object) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        return subprocess.run(
            program, cwd=tmp_path, env=dict(store.env), capture_output=True, text=True, check=False, timeout=300
        )

    return to_its_end


def on(cluster: Helper) -> tuple[str, ...]:
    return "--engine", "ray", "--address", cluster.line


def write_images(folder: Path, count: int, height: int = 44) -> None:
    for index in range(count):
        path = folder / f"class{index % 3}" / f"image{index:03d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(index, height, height + 3).transpose(1, 2, 0)).save(path)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def faults(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@needs_ray
def test_image2npz_writes_the_same_and_names_the_same_bad_images(run: Run, cluster: Helper, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 40)
    for name in ("class0/image003.JPEG", "class2/image014.JPEG"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    written, said = [], []
    for engine in ((), on(cluster)):
        done = run("image2npz", "--dataset_path", "images", "--target_path", "npz", "--text_path", "l.txt", *engine)
        assert done.returncode == 2, done.stderr
        written.append((tree(tmp_path / "npz"), (tmp_path / "l.txt").read_text()))
        said.append(faults(done))
        shutil.rmtree(tmp_path / "npz")
    assert len(written[0][0]) == 38
    assert written[0] == written[1]
    assert said[0] == said[1]
    assert len(said[0]) == 3


@needs_ray
def test_bench_goes_on_where_a_local_run_stopped_with_the_same_results(
    run: Run, cluster: Helper, in_workspace: TinyWorkspace
) -> None:
    command = ("bench", "-m", in_workspace.prefix, "-b", 4, "--datalist", in_workspace.datalist, "--json", "-")
    assert run(*command, "--path_output", "out").returncode == 0
    out = in_workspace.root / "out"
    record_file = run_file(out)
    assert isinstance(record_file, Path)
    whole, record = read_folder(out), json.loads(record_file.read_text())
    record_file.write_text(json.dumps({**record, "finished": False}))
    for name in [*whole][5:12]:  # of the requests 4..7 and 8..11
        (out / name).unlink()
    done = run(*command, "--path_output", "out", *on(cluster))
    assert done.returncode == 0, done.stderr
    assert read_folder(out) == whole
    assert json.loads(record_file.read_text()) == record
    figures = json.loads(done.stdout)
    assert figures["accuracy_run"]["images"] == 8
    assert figures["accuracy_run"]["workers"][0]["threads"] == 1
    assert cluster.line in figures["cluster"]


@needs_ray
def test_predict_gives_the_same_in_order_and_skips_the_same(
    run: Run, cluster: Helper, in_workspace: TinyWorkspace
) -> None:
    write_images(in_workspace.root / "images", 30)
    (in_workspace.root / "images/class1/image004.JPEG").write_bytes(b"no image")
    command = ("predict", "-m", in_workspace.prefix, "images", "-b", 4, "--json", "-", "--skip_bad")
    local, ray = run(*command), run(*command, *on(cluster))
    assert ray.returncode == 0, ray.stderr
    assert len(json.loads(ray.stdout)) == 29
    assert ray.stdout == local.stdout

    def skipped(done: subprocess.CompletedProcess[str]) -> list[str]:
        return [line for line in done.stderr.splitlines() if "skipped" in line]

    assert skipped(ray) == skipped(local)
    assert len(skipped(ray)) == 2


@needs_ray
def test_killed_worker_costs_nothing_but_time(run: Run, cluster: Helper, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, height=900)
    for index in range(2, 240):
        os.link(tmp_path / "images/class0/image000.JPEG", tmp_path / f"images/class0/image{index:03d}.JPEG")
    command = ["image2npz", "--dataset_path", "images", "--text_path", "list.txt", "--target_path"]
    assert run(*command, "npz").returncode == 0
    running = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command, "again", *on(cluster)],
        cwd=tmp_path,
        env=dict(cluster.env),
        stderr=subprocess.PIPE,
        text=True,
    )
    for killed in range(1, 3):  # the second in case the first one had just answered, or not begun
        deadline = time.monotonic() + 120
        while not (busy := working(tmp_path)) or len(list((tmp_path / "again").rglob("*.npz"))) < 20 * killed:
            assert running.poll() is None
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.05)
        os.kill(busy[0], signal.SIGKILL)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert re.search(r"died \(\d+\); the work is done again", said)
    assert tree(tmp_path / "again") == tree(tmp_path / "npz")  # no scratch file either


@needs_ray
@pytest.mark.skipif(not HAS_S3, reason="needs pip install s3fs 'moto[s3]' flask flask-cors")
def test_images_and_npz_may_be_urls(run: Run, store: Helper, cluster: Helper, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 12)
    upload = (
        "s = fsspec.filesystem('s3'); s.mkdir('pictures'); s.put(argv[1] + '/', 'pictures/images/', recursive=True)"
    )
    in_store(store, upload, tmp_path / "images")
    command = ("image2npz", "--text_path", "list.txt", "--dataset_path")
    assert run(*command, "images", "--target_path", "npz").returncode == 0
    far = (*command, "s3://pictures/images", "--target_path", "s3://pictures/npz", *on(cluster))
    done = run(*far)
    assert done.returncode == 0, done.stderr
    listed = (tmp_path / "list.txt").read_text().splitlines()
    assert listed[0] == "s3://pictures/npz/class0/image000.npz"
    fetch = "fsspec.filesystem('s3').get('pictures/npz/', argv[1] + '/', recursive=True)"
    in_store(store, fetch, tmp_path / "fetched")
    assert tree(tmp_path / "fetched") == tree(tmp_path / "npz")
    assert "(12 were done already)" in run(*far).stdout


def working(folder: Path) -> list[int]:
    """Return the processes of Ray's that work on a task of ours in a folder; they go there when they have begun."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            begun = (path / "cmdline").read_bytes().startswith(b"ray::Map(answer_chunk)")
            if begun and (path / "cwd").readlink() == folder:
                found.append(int(path.name))
        except OSError:
            continue
    return sorted(found)


def processes_with(setting: str) -> list[int]:
    """Return the processes whose environment holds a setting."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if setting.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def in_store(store: Helper, code: str, *arguments: object) -> None:
    program = [sys.executable, "-c", f"import fsspec; from sys import argv; {code}", *map(str, arguments)]
    subprocess.run(program, env=dict(store.env), check=True, timeout=60)


POISON = """
import os, signal, sys
from pipeline.host.cluster import Cluster
from pipeline.errors import PipelineError

def die(setup):
    return lambda tasks: os.kill(os.getpid(), signal.SIGKILL)

def stumble(setup):
    return lambda tasks: tasks[0] / 0

with Cluster(sys.argv[1]).connect() as nodes:
    for work in (stumble, die):
        try:
            list(nodes.run(work, None, [1], chunk=1))
        except Exception as err:
            print(type(err).__name__, err)
"""


@needs_ray
def test_bugs_keep_their_traceback_and_work_that_kills_every_worker_ends_the_run(cluster: Helper) -> None:
    program = [sys.executable, "-c", POISON, cluster.line]
    done = subprocess.run(program, env=dict(cluster.env), capture_output=True, text=True, check=True, timeout=200)
    bug, _, death = done.stdout.partition("\nBackendError ")
    assert bug.startswith("RuntimeError in a Ray worker on ")
    assert bug.rstrip().endswith("ZeroDivisionError: division by zero")
    assert death.startswith("--engine ray: 4 workers died one after the other at the same images;")


@needs_ray
def test_ctrl_c_ends_a_ray_of_its_own_with_all_its_processes(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 60, height=900)
    token = f"RAY_ENGINE_TEST={uuid.uuid4().hex}"
    name, _, value = token.partition("=")
    running = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "image2npz", "--dataset_path", "images", "--target_path", "npz",
         "--engine", "ray"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), name: value},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any((tmp_path / "npz").rglob("*.npz")):
        assert running.poll() is None
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
    assert len(processes_with(token)) > 3
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == cli.EXIT_INTERRUPTED, said
    assert said.splitlines()[-1] == "interrupted; run the same command again to resume"
    deadline = time.monotonic() + 20
    while processes_with(token):
        assert time.monotonic() < deadline, f"processes left: {processes_with(token)}"
        time.sleep(0.1)


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"^--engine ray: Ray Data is not installed; run: pip install 'ray\[data\]"):
        Cluster()


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")
def test_ray_that_is_too_old_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.50.1")
    with pytest.raises(
        BackendError, match=r"^--engine ray: Ray 2\.50\.1 is too old; run: pip install 'ray\[data\]>=2\.60'"
    ):
        Cluster()


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")
@pytest.mark.parametrize(
    ("address", "kind", "text"),
    [
        ("ray://head:10001", ConfigError, "--address ray://head:10001: Ray Data runs on a node of the cluster"),
        ("rubbish", ConfigError, "--address rubbish: expected auto or HOST:PORT"),
        ("127.0.0.1:1", BackendError, "--address 127.0.0.1:1: nobody answers (Connection refused)"),
    ],
)
def test_address_that_leads_nowhere_is_one_line(address: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        Cluster(address).check()
    assert str(caught.value).startswith(text)


def fault_of(arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([str(argument) for argument in arguments]) == cli.EXIT_FAULT
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ("image2npz", "--dataset_path", "images", "--target_path", "npz"),
        ("bench", "--datalist", "list.txt"),
        ("predict", "cat.jpg"),
    ],
)
def test_address_without_the_engine_is_one_line(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = fault_of([*command, "--address", "auto"], capsys)
    assert said == "error: --address auto: needs a Ray cluster; add --engine ray, or leave it out\n"


@pytest.mark.parametrize(
    "command",
    [
        ("image2npz", "--dataset_path", "i", "--target_path", "n", "--text_path", "s3://bucket/list.txt"),
        ("bench", "--datalist", "s3://bucket/list.txt"),
        ("predict", "cat.jpg", "--csv", "s3://bucket/list.txt"),
    ],
)
def test_url_of_what_must_be_a_file_is_one_line(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(command))
    assert "expected a file on a disk, got 's3://bucket/list.txt'" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "--engine ray: is for a run over --datalist FILE"),
        (("--sweep",), "--engine ray: is for a run over --datalist FILE"),
        (("--datalist", "list.txt", "-p", "2"), "--processes: --engine ray starts as many workers as fit on the nodes"),
    ],
)
def test_bench_refuses_what_a_cluster_cannot_do(
    flags: Sequence[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in fault_of(["bench", "--engine", "ray", *flags], capsys)
