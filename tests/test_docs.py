"""The pages of docs/ and the READMEs name what there is, and nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pipeline.commands.cli import as_commands, make_parser
from pipeline.config.build_file import load_build_file

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CONTENTS = DOCS / "README.md"
CHINESE = DOCS / "README.zh-CN.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
README_LINES, COLUMNS = 150, 100  # what a stranger reads in a few minutes, in any terminal
# Records, where a line is a result and its conditions.
WIDE = {"measured.md", "vendor.md", "zoo.md"}


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in ("shape", "compile"):  # whose keys are the user's
                yield from keys(inner)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> list[list[str]]:
    """Return the arguments of each `python -m pipeline` in the page's code blocks, in order.

    Loops of shells may surround a command; what they put in place of variables is left as it is.
    """
    found = []
    for language, block in code_blocks(page):
        if language in ("", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.match(r"\s*(?:\$ )?python -m pipeline (.*)", line):
                    words = shlex.split(match[1], comments=True)
                    found.append(words[: words.index("||")] if "||" in words else words)
    return found


def links_of(page: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield the text, the file and the anchor of each link that is not to the web."""
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", without_code(page)):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            yield text, (page.parent / name).resolve() if name else page, anchor


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_build_files_page_has_every_key_and_no_other() -> None:
    page = read(DOCS / "build-files.md")
    cfg = load_build_file("timm_wideres.yaml", ["accuracy.min_agreement=99", "graph.extra_ops.type=softmax"])
    known = set(keys({k: v for k, v in cfg.as_dict().items() if k != "preprocess"}))
    known -= {"crop_size", "size", "mean", "std"}  # of process_ops
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    named = {part for row in rows for part in re.findall(r"[a-z0-9_]+", row)} - {"key"}
    assert named == known


@every_page
def test_pages_name_only_commands_and_flags_that_exist(page: Path) -> None:
    text = read(page)
    parser = make_parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    for command in re.findall(r"python -m pipeline ([a-z0-9]+)", text):
        assert command in commands, command
    flags = {flag for each in commands.values() for action in each._actions for flag in action.option_strings}
    flags |= {flag for action in parser._actions for flag in action.option_strings}
    scripts = "".join(read(path) for path in (ROOT / "benchmarks").glob("*.py"))
    foreign = {
        "--quiet",
        "--no-deps",
        "--upgrade",
        "--constraint",
        "--editable",
        "--index-url",
        "--extra-index-url",
    }  # pip
    foreign |= {"--cacert", "--data-binary", "--generate", "--head", "--num-cpus", "--port", "--strict"}
    foreign |= {"--keras", "--opset", "--output"}  # tf2onnx
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - foreign:
        assert flag in flags or f'"{flag}"' in scripts, flag


@every_page
def test_commands_in_code_blocks_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()
    for words in commands_of(page):
        try:
            parser.parse_args(as_commands(words))
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", [README, CHINESE, DOCS / "getting-started.md"], ids=lambda page: str(page.name))
def test_a_datalist_is_made_before_it_is_used(page: Path) -> None:
    made: set[str] = set()
    for words in commands_of(page):
        pairs = dict(pairwise(words))
        made.add(pairs.get("--text_path", ""))
        assert pairs.get("--datalist", "") in made, shlex.join(words)


@every_page
def test_extras_are_installed_beside_the_tested_releases(page: Path) -> None:
    for command in re.findall(r"pip install [^`\n]*'\.\[[^`\n]*", read(page)):
        assert "--constraint constraints.txt" in command, command


def test_commands_page_has_every_command() -> None:
    commands = next(action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    assert set(re.findall(r"^\| `(\w+)", read(DOCS / "commands.md"), re.MULTILINE)) == set(commands)


@every_page
def test_build_files_in_yaml_blocks_load(page: Path, tmp_path: Path) -> None:
    for language, block in code_blocks(page):
        if language == "yaml":
            assert isinstance(yaml.safe_load(block), dict)
            file = tmp_path / "page.yaml"
            file.write_text(block, encoding="utf-8")
            load_build_file(file)


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for text, target, anchor in links_of(page):
        assert target.exists(), f"[{text}]: no {target.relative_to(ROOT)}"
        assert not anchor or anchor in anchors_of(target), f"[{text}]: no heading #{anchor} in {target.name}"


def test_contents_page_lists_every_page() -> None:
    listed = {target for _, target, _ in links_of(CONTENTS)}
    assert {path for path in DOCS.iterdir() if path != CONTENTS} <= listed
    assert CONTENTS in {target for _, target, _ in links_of(README)}


@pytest.mark.parametrize("page", [README, CHINESE], ids=lambda page: str(page.name))
def test_readme_is_short(page: Path) -> None:
    assert len(read(page).splitlines()) <= README_LINES


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WIDE and page != CHINESE], ids=page_id)
def test_prose_is_wrapped(page: Path) -> None:
    prose = [line for line in without_code(page).splitlines() if not line.lstrip().startswith(("|", "<!--"))]
    assert [line for line in prose if len(line) > COLUMNS] == []


def test_chinese_readme_has_the_commands_of_the_english_one() -> None:
    chinese = commands_of(CHINESE)
    for words in commands_of(README):
        # The Chinese page gives `bench --datalist` in the vendor's long form.
        assert words in chinese or (words[0] == "bench" and "--datalist" in words), shlex.join(words)
    for name in ("paddle2onnx", "resnet18_pq", "vacc"):
        assert name in read(CHINESE)
        assert name in read(README)


@pytest.mark.parametrize("page", [README, CHINESE], ids=lambda page: str(page.name))
def test_readme_has_the_commands_of_make_demo(page: Path) -> None:
    makefile = read(ROOT / "Makefile")
    variables = dict(re.findall(r"^(\w+) := (.+)$", makefile, re.MULTILINE))
    commands = re.findall(r"^\t\$\(python\) (-m pipeline .+)$", makefile, re.MULTILINE)
    assert len(commands) == 6
    lines = read(page).splitlines()
    for command in commands:
        assert f"python {command.replace('$(FIRST)', variables['FIRST'])}" in lines
