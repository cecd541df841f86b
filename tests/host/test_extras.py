"""extras.py: the advice installs what pyproject.toml has, and leaves torch alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.host.extras import install_command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("extra", ["serve", "otel", "fast", "timm", "torchvision", "keras"])
def test_command_names_an_extra_that_exists_and_keeps_the_tested_releases(extra: str) -> None:
    command = install_command(extra)
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    assert re.search(rf"^{extra} = ", extras, re.MULTILINE)
    assert command.startswith("pip install -c constraints.txt ")
    assert f"-e '.[{extra}]'" in command
    assert (ROOT / "constraints.txt").is_file()


@pytest.mark.parametrize("extra", ["timm", "torchvision"])
def test_libraries_that_bring_torch_take_it_from_its_own_index(extra: str) -> None:
    (index,) = re.findall(r"^TORCH_INDEX \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"--extra-index-url {index} " in install_command(extra)


def test_command_for_paddle_installs_what_the_extra_holds_and_keeps_the_tested_onnx() -> None:
    (needs,) = re.findall(r"^paddle = (.*)$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    together, alone = install_command("paddle").split(" && ")
    assert together.startswith("pip install -c constraints.txt ")
    assert alone == "pip install --no-deps paddle2onnx"
    names = re.findall(r'"([\w-]+)', needs)
    assert sorted(names) == sorted([*together.split()[4:], alone.split()[-1]])
