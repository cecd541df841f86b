"""doctor.py: what it says of this machine, and of machines that lack something."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.commands.cli import main
from pipeline.host import hardware
from pipeline.prepare import doctor
from pipeline.prepare.doctor import State
from pipeline.terminal.counts import counted


def lines(findings: list[doctor.Finding], state: State) -> list[str]:
    return [str(finding) for finding in findings if finding.state is state]


def test_doctor_finds_this_machine_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--workspace", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"ok    Python {platform.python_version()}" in printed
    assert f"onnxruntime {metadata.version('onnxruntime')}" in printed
    assert f"{counted(hardware.available_cores(), 'core')} for this process" in printed
    assert printed.endswith("this machine can build and run packages\n")


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = metadata.version

    def version(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return found(name)

    spec_of = importlib.util.find_spec
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else spec_of(name))


def test_doctor_needs_one_runtime_and_no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as lacking:
        without(lacking, "openvino", "torch")
        findings = doctor.examine(tmp_path)
        assert doctor.faults(findings) == 0
        notes = lines(findings, State.NOTE)
        assert "note  openvino: not installed; run: pip install openvino" in notes
        assert "note  torch: not installed; packages run without; building needs: pip install torch" in notes
    without(monkeypatch, "openvino", "onnxruntime")
    assert lines(doctor.examine(tmp_path), State.FAULT) == [
        "FAULT openvino: not installed; run: pip install openvino",
        "FAULT onnxruntime: not installed; run: pip install onnxruntime",
    ]


def test_doctor_names_a_library_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "onnx":
            raise OSError("libfoo.so: cannot open\nshared object file")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    assert main(["doctor", "--workspace", str(tmp_path)]) == 2
    printed, errors = capsys.readouterr()
    version = metadata.version("onnx")
    assert f"FAULT onnx: {version} does not import (libfoo.so: cannot open shared object file); run: pip" in printed
    assert errors == "error: this machine is not fit: 1 fault to fix, see above\n"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("memory_bytes", 2 << 30, "2.0 GiB of memory for this process; wide networks need"),
        ("available_cores", 0, "affinity or a container's quota leaves the others out"),
    ],
)
def test_doctor_notes_what_makes_a_machine_slow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: object, text: str
) -> None:
    monkeypatch.setattr(hardware, name, lambda: value)
    notes = lines(doctor.examine(tmp_path), State.NOTE)
    assert notes
    assert text in "\n".join(notes)


def test_memory_is_that_of_the_machine_or_less() -> None:
    found = hardware.memory_bytes()
    assert found is not None
    assert 1 << 28 < found < 1 << 45


def test_doctor_takes_the_module_of_another_distribution(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "ok    onnxruntime of another distribution" in lines(doctor.examine(tmp_path), State.OK)


def test_doctor_takes_a_machine_that_only_runs_packages_for_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without(monkeypatch, "onnx", "torch")
    findings = doctor.examine(tmp_path)
    for name in ("onnx", "torch"):
        advice = f"packages run without; building needs: pip install {name}"
        assert f"note  {name}: not installed; {advice}" in lines(findings, State.NOTE)
    assert doctor.faults(findings) == 0


def test_doctor_says_that_int8_is_exact_when_a_cpu_has_no_vnni(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "saturates", lambda: True)
    found = lines(doctor.examine(tmp_path), State.OK)
    assert any("no VNNI and no AMX: int8 is exact here too" in line for line in found)
