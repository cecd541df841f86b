"""keys.py, sections.py and what is generated of them: one declaration a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.cli import main
from pipeline.config import key_table, sections
from pipeline.config.keys import Below, Key, declarations, walk
from pipeline.config.schema import Document
from pipeline.errors import DataError

PAGE = Path(__file__).parents[2] / "docs" / "build-files.md"


def test_table_of_the_docs_is_what_the_declarations_say() -> None:
    assert key_table.table() in PAGE.read_text(encoding="utf-8"), (
        "renew it: python -m pipeline config docs docs/build-files.md"
    )


def test_config_docs_renews_a_page_when_its_table_is_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{key_table.BEGIN}\nold\n{key_table.END}\nafter\n", encoding="utf-8")
    assert main(["config", "docs", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == f"before\n{key_table.table()}\nafter\n"
    assert main(["config", "docs", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}: renewed\n{page}: up to date\n"


def test_renew_names_the_page_when_it_has_no_markers(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("no table", encoding="utf-8")
    with pytest.raises(DataError, match=r"page\.md: has no lines '<!-- made by"):
        key_table.renew(tmp_path / "page.md")
    with pytest.raises(DataError, match=r"none\.md: cannot be read"):
        key_table.renew(tmp_path / "none.md")


def test_every_field_of_a_section_is_declared_but_what_is_read_by_hand() -> None:
    for name, declared in declarations(sections.Sections):
        if isinstance(declared, Below):
            fields = set(declared.keys.__dataclass_fields__)
            assert fields - {name for name, _ in declarations(declared.keys)} <= {"input_name"}, name


@pytest.mark.parametrize(("name", "declared"), list(sections.declared_keys()), ids=lambda value: str(value)[:40])
def test_default_and_example_are_read_without_a_fault(name: str, declared: object) -> None:
    import yaml

    assert isinstance(declared, Key)
    key = name.rpartition(".")[2]
    for text in filter(None, [declared.example]):
        if key == "shape":
            continue  # read with its section; see test_build_file.py
        document = Document(values={key: yaml.safe_load(text)})
        declared.read(document.root(), key)
        assert document.faults == []
    document = Document()
    if key not in ("shape", "process_ops"):
        found = declared.read(document.root(), key)
        assert found == declared.default or declared.is_required
        assert bool(document.faults) == declared.is_required


def test_flags_are_of_one_key_each() -> None:
    flags = [declared.flag for _, declared in walk(sections.Sections) if declared.flag]
    assert sorted(flags) == sorted(
        [
            "--weights",
            "--size",
            "--percentile",
            "--target",
            "--num_images",
            "--dataset",
            "--evaluation",
            "--output",
            "--skip_bad",
        ]
    )
