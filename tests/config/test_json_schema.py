"""The published schema says of a build file what the loader says, as far as a schema can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.commands.cli import main
from pipeline.config import json_schema
from pipeline.config.build_file import load_build_file
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "build_configs").glob("*.yaml"))
VENDOR = sorted((ROOT.parent / "shared" / "vendor").glob("*.yaml"))
SCHEMA = json_schema.build_file_schema()
BASE: dict[str, Any] = yaml.safe_load((ROOT / "build_configs" / "timm_wideres.yaml").read_text(encoding="utf-8"))


def faults(document: object) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(document)]


def with_key(key: str, value: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(BASE))
    *sections, last = key.split(".")
    inner = document
    for section in sections:
        if not inner.get(section):
            inner[section] = {}
        inner = inner[section]
    inner[last] = value
    return document


def loads(document: object, path: Path) -> bool:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    try:
        load_build_file(path)
    except ConfigError:
        return False
    return True


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", [*SHIPPED, *VENDOR], ids=lambda path: path.name)
def test_files_that_load_are_valid(path: Path) -> None:
    load_build_file(path)
    assert faults(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


def test_what_a_dry_run_prints_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "timm_wideres.yaml", "--dry-run", "--set", "accuracy.min_agreement=99"]) == 0
    printed = capsys.readouterr().out
    document = yaml.safe_load("\n".join(line for line in printed.splitlines() if not line.startswith("sample weights")))
    assert faults(document) == []


@pytest.mark.parametrize("key", [key for key in json_schema.key_names() if json_schema.values(key)])
def test_loader_takes_each_value_that_the_schema_offers(key: str, tmp_path: Path) -> None:
    for value in json_schema.values(key):
        document = with_key(key, yaml.safe_load(value))
        assert faults(document) == []
        assert loads(document, tmp_path / "x.yaml"), (key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "a/b"),
        ("frontend.type", "tim"),
        ("frontend.shape", {"input": [1, 4, 8, 8]}),
        ("frontend.shape", {"input": [1, 3, 8, 8], "other": [1, 3, 8, 8]}),
        ("frontend.num_classes", 0),
        ("backend.dtype", "int4"),
        ("backend.quantize.percentile", 0.9999),
        ("backend.quantize.percentile", "99"),
        ("backend.quantize.pixel_input", "yes"),
        ("backend.quantize.exclude_layers", [-1]),
        ("backend.targets", "vnni"),
        ("dataset.sampler.get_data_num", 0),
        ("dataset.process_ops", [{"type": "Resise", "size": 3}]),
        ("dataset.process_ops", [{"type": "CenterCrop"}]),
        ("evaluation.nmu", 3),
        ("accuracy", {"min_speed": 2}),
        ("graph.extra_ops.type", "sigmoid"),
    ],
)
def test_what_the_loader_refuses_is_not_valid(key: str, value: object, tmp_path: Path) -> None:
    document = with_key(key, value)
    assert faults(document)
    assert not loads(document, tmp_path / "x.yaml")


@pytest.mark.parametrize("key", list(json_schema.key_names()))
def test_every_key_of_the_schema_is_known_to_the_loader(key: str, tmp_path: Path) -> None:
    """A value of no kind that any key takes: the fault must be of the value, not of the key."""
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(with_key(key, {"no": ["such", {"value": 1}]})), encoding="utf-8")
    if key == "backend.compile":  # takes anything
        load_build_file(tmp_path / "x.yaml")
        return
    with pytest.raises(ConfigError) as caught:
        load_build_file(tmp_path / "x.yaml")
    assert key in str(caught.value)
    assert "unknown key" not in str(caught.value)


def test_published_file_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    printed = capsys.readouterr().out
    assert printed == (ROOT / "docs" / "build-file.schema.json").read_text(encoding="utf-8")
    assert json.loads(printed) == SCHEMA


def test_config_keys_lists_what_set_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(json_schema.key_names())
    (mode,) = [line for line in lines if line.startswith("backend.quantize.calibrate_mode ")]
    assert "percentile, kl_divergence, max, mse" in mode


def test_config_show_prints_the_resolved_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "timm_wideres.yaml", "--set", "backend.quantize.percentile=99.5"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "x.yaml").write_text(printed, encoding="utf-8")
    resolved = load_build_file(tmp_path / "x.yaml")
    wanted = load_build_file("timm_wideres.yaml", ["backend.quantize.percentile=99.5"])
    assert resolved.as_dict() == wanted.as_dict()
    assert main(["config", "show", "timm_wideres.yaml", "--set", "backend.quantise.percentile=99.5"]) == 2
    assert "did you mean 'quantize'?" in capsys.readouterr().err
