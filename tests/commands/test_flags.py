"""Flags of commands: those that stand for keys of build files, and what the help says."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.commands.cli import main, make_parser
from pipeline.commands.flags import check_json_path, check_report_path, flagged_keys
from pipeline.config.sections import declaration
from pipeline.errors import ConfigError


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    parser = make_parser()
    yield from next(action.choices for action in parser._actions if isinstance(action.choices, dict)).items()


def shown(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Return the build file that a dry run prints."""
    assert main(["build", "timm_wideres.yaml", "--dry-run", *arguments]) == 0
    text = capsys.readouterr().out
    found: dict[str, object] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (("--percentile", "99.5"), "backend.quantize.percentile", 99.5),
        (("--num_images", "1500"), "dataset.sampler.get_data_num", 1500),
        (("--output", "elsewhere"), "workspace.path", "elsewhere"),
        (("--size", "224"), "frontend.shape", {"input": [1, 3, 224, 224]}),
        (("--target", "avx2"), "backend.target", "avx2"),
    ],
)
def test_build_sets_the_key_when_its_flag_is_given(
    flags: tuple[str, ...],
    key: str,
    value: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    monkeypatch.chdir(str(tmp_path))
    found: object = shown(*flags, "--quiet", capsys=capsys)
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--percentile", "30"), "--percentile: must be in (50, 100], got 30"),
        (("--percentile", "much"), "--percentile: expected a number, got 'much'"),
        (("--num_images", "0"), "--num_images: expected an integer >= 1, got 0"),
        (
            ("--num_images", "1e3"),
            "--num_images: expected an integer >= 1, got '1e3'; YAML reads that as text: write 1000",
        ),
        (("--size", "0"), "--size: must be in 1..16384, got 0"),
        (("--size", "big"), "--size: must be in 1..16384, got 'big'"),
        (("--target", "vni"), "--target: expected one of any, vnni, avx2, got 'vni'; did you mean 'vnni'?"),
        (("--output", ""), "--output: expected a path, got ''"),
    ],
)
def test_build_names_the_flag_when_its_value_is_wrong(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "timm_wideres.yaml", "--dry-run", *flags]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_build_reports_all_faults_when_flags_and_overrides_have_some(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["build", "timm_wideres.yaml", "--percentile", "3", "--size", "0", "--set", "evaluation.num=0"]
    assert main(line) == 2
    assert sorted(line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()) == [
        "--percentile: must be in (50, 100], got 3",
        "--set evaluation.num: expected an integer >= 1, got 0",
        "--size: must be in 1..16384, got 0",
    ]


def test_help_of_build_names_the_key_that_each_flag_stands_for() -> None:
    build = dict(commands())["build"]
    helps = {flag: action.help or "" for action in build._actions for flag in action.option_strings}
    for key in flagged_keys():
        assert helps[str(declaration(key).flag)].endswith(f"({key})")


# `(10)`, `(the last one built)` at the end of a help: a default without the word. Keys are `(section.key)`.
_BARE = re.compile(r"\((?!default: )(?!\w+(\.\w+)+\))[^()]*\)$")


@pytest.mark.parametrize("name", dict(commands()))
def test_help_writes_defaults_as_default_x(name: str) -> None:
    parser = dict(commands())[name]
    formatter = parser.formatter_class(prog="x")
    for action in parser._actions:
        text = formatter._get_help_string(action) or ""
        assert not _BARE.search(text), f"{action.option_strings}: {text}"
        if action.option_strings and isinstance(action.default, (int, float, str)) and action.default not in (0, False):
            assert "(default: " in text or action.default == argparse.SUPPRESS, f"{action.option_strings}: {text}"


@pytest.mark.parametrize("name", dict(commands()))
def test_help_names_flags_of_its_command_only(name: str) -> None:
    parser = dict(commands())[name]
    own = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        text = re.sub(r"bench --sweep|--\w+ of \w+", "", action.help or "")
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= own, text


def test_dry_run_says_what_the_name_of_the_package_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "timm_wideres.yaml", "--dry-run", "--quiet"]) == 0
    package, meaning = capsys.readouterr().out.splitlines()[-2:]
    assert package == "# package deploy_weights/wide_resnet50_2-int8-percentile-3_256_256-vacc/wide_resnet50_2"
    assert meaning == (
        "#   its name, as the vendor's: int8, percentile calibration, input of 3 channels and 256x256 px; vacc is the "
        "vendor's word for its target"
    )


@pytest.mark.parametrize(("flag", "check"), [("--json", check_json_path), ("--report", check_report_path)])
def test_a_file_that_cannot_be_written_is_found_before_any_work(
    flag: str, check: Callable[[Path | None], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("link").symlink_to("folder/target")
    for fine in (None, "-", "new.json", "file", "folder/a/b/new.json", "link", "/dev/null", "/dev/stdout"):
        check(None if fine is None else Path(fine))
    with pytest.raises(ConfigError, match=rf"^{flag} folder: is a folder; give a file$"):
        check(Path("folder"))
    with pytest.raises(ConfigError, match=rf"^{flag} file/x: cannot be written \({tmp_path}/file is a file\); give "):
        check(Path("file/x"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match=rf"^{flag} link: cannot be written \(Permission denied\); give another$"):
        check(Path("link"))


def test_check_takes_the_overrides_of_build(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", "--keys", "build_configs/timm_wideres.yaml", "--set"]
    assert main([*line, "evaluation.num=5"]) == 0
    assert main([*line, "evaluation.num=0"]) == 2
    assert capsys.readouterr().err == "error: --set evaluation.num: expected an integer >= 1, got 0\n"
    params = "vdsp_params/torchvision-wide_resnet50_2-vdsp_params.json"
    assert main(["check", params, "--set", "evaluation.num=5"]) == 2
    assert capsys.readouterr().err == (
        "error: --set evaluation.num=5: overrides a key of a build file (.yaml); none is given\n"
    )


def test_a_name_that_is_too_long_for_a_file_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x" * 300
    for line in (
        ["predict", "image.jpg", "--json", name],
        ["check", f"{name}.json"],
        ["image2npz", "--dataset_path", name],
    ):
        more = ["--target_path", "npz"] if line[0] == "image2npz" else []
        assert main([*line, *more]) == 2
        assert "File name too long" in capsys.readouterr().err, line
