"""benchmarks/accuracy.py and families.py: settings of the build file that are given on the command line."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SET = ("backend.quantize.percentile=99.999", "accuracy.max_kl=0.001")


def import_script(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    __import__(name)
    return sys.modules[name]


def test_set_changes_the_build_file_of_our_row(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = import_script(monkeypatch, "accuracy")
    flags = [flag for override in SET for flag in ("--set", override)]
    cfg = accuracy.read_config(accuracy.make_parser().parse_args(["torchvision_resnet18.yaml", *flags]))
    assert cfg.backend.quantize.percentile == 99.999
    assert cfg.accuracy.max_kl == 0.001
    assert accuracy.read_config(accuracy.make_parser().parse_args(["torchvision_resnet18.yaml"])).accuracy is None


def test_families_passes_set_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    families = import_script(monkeypatch, "families")
    accuracy = import_script(monkeypatch, "accuracy")
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        ran.append(command)
        (tmp_path / "found.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(families.subprocess, "run", run)
    args = families.make_parser().parse_args(["--set", SET[0], "--set", SET[1]])
    families.measure(families.Network("net", tmp_path / "net.yaml"), args, tmp_path / "found.json")
    assert accuracy.make_parser().parse_args(ran[0][2:]).set == list(SET)
