"""What the shell is offered, asked as argcomplete asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")
REPOSITORY = Path(__file__).parents[2]


def offered(line: str, tmp_path: Path) -> list[str]:
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    code = "from pipeline.commands.cli import main; main()"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=False, timeout=60)
    return [word.strip() for word in answer.read_text(encoding="utf-8").split("\n") if word.strip()]


def test_commands_are_offered(tmp_path: Path) -> None:
    assert {"build", "bench", "eval", "predict"} <= set(offered("int8-pipeline ", tmp_path))


def test_keys_of_set_are_offered(tmp_path: Path) -> None:
    found = offered("int8-pipeline build timm_wideres.yaml --set backend.quantize.p", tmp_path)
    assert {word.rstrip("=") for word in found} == {"backend.quantize.percentile", "backend.quantize.pixel_input"}


def test_values_of_set_are_offered(tmp_path: Path) -> None:
    found = offered("int8-pipeline build timm_wideres.yaml --set backend.quantize.calibrate_mode=", tmp_path)
    assert {word.rpartition("=")[2] for word in found} == {"percentile", "measured", "kl_divergence", "max", "mse"}


def test_build_files_are_offered_here_and_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("", encoding="utf-8")
    found = offered("int8-pipeline build ", tmp_path)
    assert {"my.yaml", "timm_wideres.yaml"} <= set(found)
