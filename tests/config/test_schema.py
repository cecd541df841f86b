"""schema.py and documents.py: every fault of a file, at its line, in words that are held here."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import pytest

from pipeline.config.documents import (
    MAX_BYTES,
    apply_override,
    find_data_file,
    find_file,
    parse_json,
    parse_yaml,
    read_text,
)
from pipeline.config.schema import Document, Fault, raise_faults
from pipeline.errors import ConfigError


class Colour(Enum):
    RED = "red"
    GREEN = "green"


def faults_of(document: Document) -> list[str]:
    return [str(fault) for fault in document.faults]


def test_fault_names_line_when_it_has_one() -> None:
    assert str(Fault("a.yaml", 3, "x.y", "wrong")) == "a.yaml:3 x.y: wrong"


def test_fault_joins_file_and_key_by_colon_when_it_has_no_line() -> None:
    assert str(Fault("a.json", None, "x.y", "wrong")) == "a.json:x.y: wrong"


def test_fault_joins_flag_and_key_by_space_when_a_flag_said_it() -> None:
    assert str(Fault("--set", None, "x.y", "wrong")) == "--set x.y: wrong"


def test_fault_names_file_alone_when_it_has_no_key() -> None:
    assert str(Fault("a.yaml", None, "", "wrong")) == "a.yaml: wrong"
    assert str(Fault("a.yaml", 2, "", "wrong")) == "a.yaml:2: wrong"


def test_raise_faults_sorts_by_line_when_several() -> None:
    with pytest.raises(ConfigError) as error:
        raise_faults([Fault("--set", None, "z", "3"), Fault("a", 9, "y", "2"), Fault("a", 1, "x", "1")])
    assert str(error.value) == "a:1 x: 1\na:9 y: 2\n--set z: 3"


def test_parse_yaml_gives_lines_when_keys_nest() -> None:
    document = parse_yaml("a:\n  b: 1\n  c:\n    - {d: 2}\n", "f")
    assert document.values == {"a": {"b": 1, "c": [{"d": 2}]}}
    assert document.at(("a", "b"), "m").line == 2
    assert document.at(("a", "c", 0, "d"), "m").line == 4


def test_document_points_at_section_when_key_is_absent() -> None:
    document = parse_yaml("x: 1\na:\n  b: 1\n", "f")
    assert str(document.at(("a", "c"), "missing")) == "f:2 a.c: missing"
    assert str(document.at(("zz",), "missing")) == "f:1 zz: missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f:2 a: given twice"),
        ("a:\n  b: 1\n  b: 1\n", "f:3 a.b: given twice"),
        ("a:\n  1: x\n", "f:2 a: expected a key that is text, got 1"),
        ("a: 2020-99-99\n", "f:1 a: cannot be read as a value: '2020-99-99'"),
    ],
)
def test_parse_yaml_collects_fault_when_mapping_is_wrong(text: str, message: str) -> None:
    assert faults_of(parse_yaml(text, "f")) == [message]


NO_COLON = "; a colon with a space is missing in the line above, or this one has too many spaces before it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\n", "f:2: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a b\nc: 1\n", f"f:2: not valid YAML: mapping values are not allowed here{NO_COLON}"),
        ("a:1\nc: 1\n", f"f:2: not valid YAML: mapping values are not allowed here{NO_COLON}"),
        (
            "a:\n  b: 1\n c: 2\n",
            "f:3: not valid YAML: expected <block end>, but found '<block mapping start>'; this line has too few "
            "or too many spaces before it",
        ),
        ("a:\n\tb: 1\n", "f:2: not valid YAML: found character '\\t' that cannot start any token; indent with spaces"),
        ('a: "b\n', "f:2: not valid YAML: found unexpected end of stream; a quotation mark is not closed"),
        ("a: &x [1]\nb: *x\n", "f:2: not valid YAML: aliases (*name) are supported for single short values only"),
        ("[" * 30 + "]" * 30, "f:1: not valid YAML: nested deeper than 20"),
        ("- 1\n", "f: expected sections of keys (name:, frontend:, ...), got [1]"),
        ("a: !!python/object/apply:os.getcwd []\n", None),
        ("a: 1\n---\nb: 1\n", "f:2: not valid YAML: but found another document"),
        ("a: \x00\n", "f: not valid YAML: special characters are not allowed"),
    ],
)
def test_parse_yaml_raises_when_text_is_refused(text: str, message: str | None) -> None:
    if message is None:  # a tag of a list is not looked at: it stays the plain list that it is
        assert parse_yaml(text, "f").values == {"a": []}
        return
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "f")
    assert str(error.value) == message


def test_parse_yaml_raises_when_scalar_has_a_python_tag() -> None:
    with pytest.raises(ConfigError, match=r"^f:1: not valid YAML: could not determine a constructor for the tag"):
        parse_yaml("a: !!python/name:os.getcwd x\n", "f")


def test_parse_yaml_is_empty_when_text_is_empty() -> None:
    assert parse_yaml("# nothing\n", "f").values == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": 1,\n}', "f:3: not valid JSON: "),
        ("[1]", "f: expected an object of keys, got [1]"),
        ("[" * 100_000, "f: not valid JSON: "),
    ],
)
def test_parse_json_raises_when_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_json(text, "f")
    assert str(error.value).startswith(message)


def test_parse_json_collects_fault_when_key_is_given_twice() -> None:
    assert faults_of(parse_json('{"a": 1, "a": 2}', "f")) == ["f:a: given twice"]


def test_read_text_raises_when_file_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes, so it is not a configuration file"):
        read_text(path)


def test_read_text_raises_when_file_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 3\)"):
        read_text(path)


def test_section_says_how_yaml_wants_a_number_when_it_has_an_exponent_only() -> None:
    document = parse_yaml("n: 1e-3\nw: -2.5E4\ni: 2e2\nx: 1e-3px\nf: 1.0e-3\n", "f")
    root = document.root()
    for name in "nx":
        root.number(name, 1.5)
    root.number_within("w", 0.5, "nats > 0", lambda value: value > 0)
    root.integer("i", 7, low=0)
    assert root.number("f", 1.5) == 0.001
    assert faults_of(document) == [
        "f:1 n: expected a number, got '1e-3'; YAML reads that as text: write 0.001",
        "f:4 x: expected a number, got '1e-3px'",
        "f:2 w: expected nats > 0, got '-2.5E4'; YAML reads that as text: write -25000",
        "f:3 i: expected an integer >= 0, got '2e2'; YAML reads that as text: write 200",
    ]


def test_section_coerces_nothing_when_types_are_near() -> None:
    document = parse_yaml('i: "1"\nj: true\nb: 1\nn: "2.5"\nt: 3\nf: 1.0\n', "f")
    root = document.root()
    assert root.integer("i", 7, low=0) == 7
    assert root.integer("j", 7, low=0) == 7
    assert root.boolean("b", True) is True
    assert root.number("n", 1.5) == 1.5
    assert root.text("t", None) is None
    assert root.integer("f", 7, low=0) == 7
    assert faults_of(document) == [
        "f:1 i: expected an integer >= 0, got '1'",
        "f:2 j: expected an integer >= 0, got true",
        "f:3 b: expected true or false, got 1",
        "f:4 n: expected a number, got '2.5'",
        "f:5 t: expected text, got 3",
        "f:6 f: expected an integer >= 0, got 1.0",
    ]


@pytest.mark.parametrize("text", [".nan", ".inf", "1" + "0" * 400, "true", "null"])
def test_section_number_is_a_fault_when_not_finite(text: str) -> None:
    document = parse_yaml(f"n: {text}\n", "f")
    document.root().number("n", 1.0)
    assert len(document.faults) == 1


def test_section_accepts_null_when_default_is_none() -> None:
    document = parse_yaml("a: null\nb: null\nc: null\n", "f")
    root = document.root()
    assert (root.path("a", None), root.text("b", None), root.choice("c", Colour, None)) == (None, None, None)
    assert document.faults == []


def test_section_choice_suggests_member_when_nearly_one() -> None:
    document = parse_yaml("c: gren\n", "f")
    document.root().choice("c", Colour, Colour.RED)
    assert faults_of(document) == ["f:1 c: expected one of red, green, got 'gren'; did you mean 'green'?"]


@pytest.mark.parametrize("text", ["[1, 2]", "[1, 2, x]", "3", "[1, 2, 0]", "[1, 2, true]"])
def test_section_numbers_is_a_fault_when_not_three_above_zero(text: str) -> None:
    document = parse_yaml(f"n: {text}\n", "f")
    assert document.root().numbers("n", (1.0, 1.0, 1.0), positive=True) == (1.0, 1.0, 1.0)
    assert faults_of(document)[0].startswith("f:1 n: expected 3 numbers > 0, got ")


def test_section_done_suggests_key_when_unknown() -> None:
    document = parse_yaml("sufix: a\nzzz: 1\n", "f")
    root = document.root()
    root.text("suffix", "JPEG")
    root.done()
    assert faults_of(document) == [
        "f:1 sufix: unknown key; did you mean 'suffix'?",
        "f:2 zzz: unknown key; known here: suffix",
    ]


def test_section_is_a_fault_when_it_is_a_scalar() -> None:
    document = parse_yaml("a: 1\nb: [1]\nc: 2\n", "f")
    document.root().section("a")
    document.root().sections("b")
    document.root().sections("c")
    assert faults_of(document) == [
        "f:1 a: expected a section of keys, got 1",
        "f:2 b.0: expected a section of keys, got 1",
        "f:3 c: expected a list of sections, got 2",
    ]


def test_apply_override_sets_value_when_path_is_new_dotted_or_numbered() -> None:
    document = parse_yaml("s: {input.1: [1]}\nl: [{a: 1}]\nn: null\n", "f")
    apply_override(document, "s.input.1", [2], "--set")
    apply_override(document, "l.0.a", 2, "--set")
    apply_override(document, "n.x.y", 3, "--set")
    assert document.values == {"s": {"input.1": [2]}, "l": [{"a": 2}], "n": {"x": {"y": 3}}}
    assert str(document.at(("l", 0, "a"), "m")) == "--set l.0.a: m"
    assert str(document.at(("n", "x"), "m")) == "--set n.x: m"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("l.1.a", "--set l.1.a: expected the number of one of its 1 items, got '1' in [{\"a\": 1}]"),
        ("t.a", "--set t.a: expected a section above it, got 'a' in 'x'"),
    ],
)
def test_apply_override_is_a_fault_when_there_is_no_place(key: str, message: str) -> None:
    document = parse_yaml("l: [{a: 1}]\nt: x\n", "f")
    apply_override(document, key, 1, "--set")
    assert faults_of(document) == [message]


def test_find_data_file_takes_last_component_when_path_is_foreign() -> None:
    found = find_data_file("build_configs", "./vacc_code/build/timm_wideres.yaml")
    assert found.name == "timm_wideres.yaml"
    assert found == find_data_file("build_configs", r"vacc_code\build\timm_wideres.yaml")


def test_find_data_file_lists_nearest_when_missing() -> None:
    with pytest.raises(ConfigError) as error:
        find_data_file("build_configs", "x/timm_widres.yaml")
    message = "x/timm_widres.yaml: no such file, nor one of that name in build_configs/; nearest: timm_wideres.yaml"
    assert str(error.value).startswith(message)


def test_find_file_raises_when_path_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, expected a file"):
        find_file(tmp_path, "build_configs")


def test_find_file_raises_when_name_is_too_long() -> None:
    with pytest.raises(ConfigError):  # the words are the system's before Python 3.14, "no such file" from there on
        find_file("x" * 5000, "build_configs")
