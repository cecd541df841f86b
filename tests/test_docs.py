"""The pages of docs/ name what there is, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands.cli import make_parser
from pipeline.config.build_file import load_build_file

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in ("shape", "compile"):  # whose keys are the user's
                yield from keys(inner)


def test_build_files_page_has_every_key_and_no_other() -> None:
    page = (DOCS / "build-files.md").read_text(encoding="utf-8")
    cfg = load_build_file("timm_wideres.yaml", ["accuracy.min_agreement=99", "graph.extra_ops.type=softmax"])
    known = set(keys({k: v for k, v in cfg.as_dict().items() if k != "preprocess"}))
    known -= {"crop_size", "size", "mean", "std"}  # of process_ops
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    named = {part for row in rows for part in re.findall(r"[a-z0-9_]+", row)} - {"key"}
    assert named == known


@pytest.mark.parametrize("page", [*sorted(path.name for path in DOCS.glob("*.md")), "../README.md"])
def test_pages_name_only_commands_and_flags_that_exist(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    parser = make_parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    for command in re.findall(r"python -m pipeline ([a-z0-9]+)", text):
        assert command in commands, command
    flags = {flag for each in commands.values() for action in each._actions for flag in action.option_strings}
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    foreign = {"--quiet", "--no-deps", "--upgrade", "--constraint", "--editable", "--index-url"}  # pip
    foreign |= {"--data-binary", "--head", "--num-cpus", "--port"}  # curl, ray
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - foreign:
        assert flag in flags or f'"{flag}"' in scripts, flag


def test_readme_has_the_commands_of_make_demo() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) := (.+)$", makefile, re.MULTILINE))
    commands = re.findall(r"^\t\$\(python\) (-m pipeline .+)$", makefile, re.MULTILINE)
    assert len(commands) == 6
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for command in commands:
        assert f"python {command.replace('$(FIRST)', variables['FIRST'])}" in readme
