"""An installed package behaves like a clone: the data folders come along."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA_FOLDERS = ("build_configs", "vdsp_params", "data_prep")


@pytest.mark.slow
def test_wheel_finds_build_files_when_run_outside_the_clone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert (installed / "pipeline" / "py.typed").is_file()
    for folder in DATA_FOLDERS:
        shipped = {path.name for path in (ROOT / folder).iterdir() if path.is_file()}
        assert shipped <= {path.name for path in (installed / "pipeline" / "_data" / folder).iterdir()}
    names = sorted(path.name for path in (ROOT / "build_configs").glob("*.yaml"))
    script = f"from pipeline.config.build_file import load_build_file as load; [load(name) for name in {names!r}]"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
