"""Whole commands, killed, interrupted, out of disk or of files at moments of chance.

What they leave is whole, and the next run ends as an undisturbed one would. `FAULT_TURNS=20 python -m pytest
tests/test_faults.py` tries more moments; a seed is printed with each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from run_fixtures import FOLDER, NAME, REPOSITORY, RunCommand, TinyWorkspace, read_local_datalist

from pipeline.artefacts import is_published
from pipeline.config.build_config import BuildConfig

pytestmark = pytest.mark.slow

TURNS = int(os.environ.get("FAULT_TURNS", "1"))
STARTED = 0.3  # s, by which the interpreter has begun with our own code, whose faults these are

MakeConfig = Callable[..., BuildConfig]


@dataclass(frozen=True)
class Job:
    """A command, and what it makes."""

    arguments: Sequence[object]
    made: Sequence[Path]  # files and folders

    def remove(self) -> None:
        for path in self.made:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def content(self) -> dict[str, bytes]:
        """Return what was made, without the files that hold measured times and the locks."""
        found = {}
        for root in self.made:
            for path in sorted([root, *root.rglob("*")]):
                if path.is_file() and not path.name.endswith(".lock"):
                    found[str(path)] = timeless(path)
        return found


def timeless(path: Path) -> bytes:
    if path.name == "figures.json":
        return b""
    if path.name == "manifest.json":  # of a stage: lists the size and digest of its figures.json
        manifest = json.loads(path.read_bytes())
        manifest["files"].pop("figures.json", None)
        return json.dumps(manifest, sort_keys=True).encode()
    if path.name.endswith(".run.json"):
        record = json.loads(path.read_bytes())
        return json.dumps({key: value for key, value in record.items() if key != "figures"}, sort_keys=True).encode()
    return path.read_bytes()


@pytest.fixture
def build_job(make_config: MakeConfig, tmp_path: Path) -> Job:
    make_config()
    evaluation = f"evaluation.path={tmp_path / 'images'}"
    return Job(["build", "tiny.yaml", "--set", evaluation], [tmp_path / "workspace"])


@pytest.fixture
def image2npz_job(image_tree: Path, tmp_path: Path) -> Job:
    for image in sorted(image_tree.rglob("*.JPEG")):
        for copy in range(30):
            os.link(image, image.with_stem(f"{image.stem}_{copy}"))
    flags = ["--dataset_path", image_tree, "--target_path", "npz", "--text_path", "list.txt", "--workers", 2]
    return Job(["image2npz", *flags], [tmp_path / "npz", tmp_path / "list.txt"])


@pytest.fixture
def bench_job(tiny: TinyWorkspace, many: Path, tmp_path: Path) -> Job:
    flags = ["-m", f"{FOLDER}/{NAME}", "-b", 2, "-i", 4, "-p", 2, "--datalist", many, "--path_output", "out"]
    return Job(["bench", *flags], [tmp_path / "out", tmp_path / "out.run.json"])


@pytest.fixture(params=["build", "image2npz", "bench"])
def job(request: pytest.FixtureRequest) -> Job:
    found: Job = request.getfixturevalue(f"{request.param}_job")
    return found


def undisturbed(command: RunCommand, job: Job) -> tuple[dict[str, bytes], float]:
    """Return what the job makes, and how long it takes; what it made is removed again."""
    begun = time.monotonic()
    finish(command, job)
    seconds = time.monotonic() - begun
    expected = job.content()
    job.remove()
    return expected, seconds


def finish(command: RunCommand, job: Job) -> None:
    code, _, err = command(*job.arguments).finish()
    assert code == 0, err


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def moments(seconds: float) -> list[float]:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it where a test fails
    chance = random.Random(seed)
    return [chance.uniform(STARTED, seconds) for _ in range(TURNS)]


def assert_no_half_artefact(root: Path) -> None:
    """Whatever bears the name of an artefact of a build is one; what is not done yet has a name of its own."""
    for stage in (root / ".cache").glob("*/*"):
        assert stage.name.startswith(".") or is_published(stage), stage


def test_killed_at_any_moment_it_ends_the_same_next_time(job: Job, command: RunCommand) -> None:
    expected, seconds = undisturbed(command, job)
    for moment in moments(seconds):
        run = command(*job.arguments)
        time.sleep(moment)
        run.popen.kill()
        run.popen.communicate()
        run.assert_nothing_is_left()
        assert_no_half_artefact(job.made[0])
        finish(command, job)
        assert_same(job.content(), expected)
        job.remove()


def test_interrupted_at_any_moment_it_ends_the_same_next_time(job: Job, command: RunCommand) -> None:
    expected, seconds = undisturbed(command, job)
    for moment in moments(seconds):
        run = command(*job.arguments)
        time.sleep(moment)
        if run.popen.poll() is None:
            os.killpg(run.popen.pid, signal.SIGINT)
        code, _, err = run.finish(30)
        assert "Traceback" not in err, (moment, err)
        assert code in (0, 130), (moment, err)
        if code == 130:
            assert err.splitlines()[-1] == "interrupted; run the same command again to resume"
        run.assert_nothing_is_left()
        assert_no_half_artefact(job.made[0])
        finish(command, job)
        assert_same(job.content(), expected)
        job.remove()


def test_without_room_for_a_file_it_says_so_and_ends_the_same_next_time(
    job: Job, command: RunCommand, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for a full disk: the same calls fail."""
    expected, _ = undisturbed(command, job)
    sizes = sorted({len(content) // 1024 for content in expected.values()})
    for limit in sorted(set(random.Random(0).choices(sizes[:-1], k=TURNS))):  # KiB; the largest file is beyond any
        script = 'ulimit -f "$1"; shift; exec "$@"'
        arguments = [sys.executable, "-m", "pipeline", *map(str, job.arguments)]
        done = subprocess.run(
            ["bash", "-c", script, "bash", str(limit), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 2, (limit, done.stderr)
        assert "Traceback" not in done.stderr, (limit, done.stderr)
        assert done.stderr.splitlines()[-1].startswith("error: "), (limit, done.stderr)
        assert "File too large" in done.stderr or "no space left" in done.stderr
        assert_no_half_artefact(job.made[0])
        finish(command, job)
        assert_same(job.content(), expected)
        job.remove()


def test_image_that_goes_while_a_build_runs_is_named(build_job: Job, command: RunCommand, tmp_path: Path) -> None:
    expected, _ = undisturbed(command, build_job)
    run = command(*build_job.arguments)
    listed = tmp_path / "workspace" / ".cache" / "calibset"
    run.wait_until(lambda: any(listed.glob("[0-9a-f]*/manifest.json")))
    victim = sorted((tmp_path / "images").rglob("*.JPEG"))[-1]
    victim.rename(tmp_path / "away")
    code, _, err = run.finish()
    assert code == 2, err
    # Gone before the list of a step was made, it is known by the folder.
    assert victim.name in err.splitlines()[-1] or f"{tmp_path / 'images'}: changed while" in err.splitlines()[-1]
    assert "Traceback" not in err
    (tmp_path / "away").rename(victim)
    finish(command, build_job)
    assert_same(build_job.content(), expected)


def test_npz_that_goes_while_a_run_reads_is_named(
    bench_job: Job, command: RunCommand, many: Path, tmp_path: Path
) -> None:
    expected, _ = undisturbed(command, bench_job)
    run = command(*bench_job.arguments)
    run.wait_until(lambda: len(list((tmp_path / "out").glob("[0-9]*.npz"))) >= 10)
    victim = read_local_datalist(many)[-1]
    victim.rename(tmp_path / "away.npz")
    code, _, err = run.finish()
    assert code == 2, err
    assert str(victim) in err
    assert "Traceback" not in err
    run.assert_nothing_is_left()
    (tmp_path / "away.npz").rename(victim)
    finish(command, bench_job)
    assert_same(bench_job.content(), expected)


def test_damage_in_the_cache_never_reaches_a_package(build_job: Job, command: RunCommand, tmp_path: Path) -> None:
    """One changed byte in any file of any stage: the next build is right."""
    finish(command, build_job)
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "workspace", kept, symlinks=True)
    changed = Job([*build_job.arguments, "--set", "backend.quantize.percentile=99.5"], build_job.made)
    finish(command, changed)
    expected = changed.content()
    victims = [path for path in sorted((kept / ".cache").rglob("*")) if path.is_file() and path.stat().st_size]
    victims = [path for path in victims if path.suffix != ".lock"]
    for victim in random.Random(1).sample(victims, min(len(victims), 4 * TURNS)):
        shutil.rmtree(tmp_path / "workspace")
        shutil.copytree(kept, tmp_path / "workspace", symlinks=True)
        damaged = tmp_path / "workspace" / victim.relative_to(kept)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        code, _, err = command(*changed.arguments).finish()
        assert "Traceback" not in err, (victim, err)
        assert code == 0, (victim, err)
        found = {name: content for name, content in changed.content().items() if FOLDER_OF_PACKAGE in name}
        assert_same(found, {name: content for name, content in expected.items() if FOLDER_OF_PACKAGE in name})


FOLDER_OF_PACKAGE = "/tiny-int8-percentile-3_32_32-vacc/"
