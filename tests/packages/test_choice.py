"""What `auto` takes, and what is said of a package on a machine that it was not proven on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import TinyWorkspace

from pipeline.artefacts import write_json, write_manifest
from pipeline.commands.cli import main
from pipeline.host import hardware
from pipeline.host.hardware import instruction_sets
from pipeline.packages.choice import choose_for, fit_runtimes, machine
from pipeline.packages.package import Package
from pipeline.runtimes import opening
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import installed_runtimes, version_of

BOTH = pytest.mark.skipif(len(installed_runtimes()) < 2, reason="needs both runtimes")


def proof(runtime: Runtime, **changed: object) -> dict[str, object]:
    sound = {"version": version_of(runtime), "instruction_sets": instruction_sets(runtime.value)}
    return {**sound, "verdict": "good", "cause": "", **changed}


def package_with(
    tiny: TinyWorkspace,
    *,
    openvino: Mapping[str, object] | None = None,
    onnxruntime: Mapping[str, object] | None = None,
    speed: dict[str, Any] | None = None,
    target: str = "any",
) -> Package:
    """Return the package with a proof for both runtimes, good but for what is given."""
    facts = json.loads((tiny.folder / "package.json").read_text(encoding="utf-8"))
    facts["target"] = target
    facts["proven"] = {
        "openvino": proof(Runtime.OPENVINO, **(openvino or {})),
        "onnxruntime": proof(Runtime.ONNXRUNTIME, **(onnxruntime or {})),
    }
    write_json(tiny.folder / "package.json", facts)
    if speed is not None:
        write_json(tiny.folder / "figures.json", {"speed": speed})
    write_manifest(tiny.folder, "package")
    return tiny.package


def measured(fastest: str | None, **changed: object) -> dict[str, Any]:
    return {"fastest": fastest, "machine": {**machine(), **changed}}


@BOTH
@pytest.mark.parametrize("fastest", ["openvino", "onnxruntime"])
def test_auto_takes_the_runtime_that_was_faster_on_this_machine(tiny: TinyWorkspace, fastest: str) -> None:
    chosen = choose_for(package_with(tiny, speed=measured(fastest)), Runtime.AUTO)
    assert (chosen.runtime.value, chosen.notes) == (fastest, ())


@BOTH
@pytest.mark.parametrize(("arm", "usual"), [(False, Runtime.OPENVINO), (True, Runtime.ONNXRUNTIME)])
def test_auto_takes_the_usual_runtime_where_nothing_is_known(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch, arm: bool, usual: Runtime
) -> None:
    monkeypatch.setattr(opening, "is_arm", lambda: arm)
    other = next(each.value for each in installed_runtimes() if each is not usual)
    assert choose_for(package_with(tiny), Runtime.AUTO).runtime is usual
    assert choose_for(package_with(tiny, speed=measured(None)), Runtime.AUTO).runtime is usual
    elsewhere = package_with(tiny, speed=measured(other, cpu="Another CPU", cores=96))
    chosen = choose_for(elsewhere, Runtime.AUTO)
    assert chosen.runtime is usual
    assert chosen.notes == (
        f"speed was measured on another machine (Another CPU, 96 cores); auto takes {usual.value}, bench --sweep finds "
        "the best",
    )


def rates(openvino: tuple[float, float], onnxruntime: tuple[float, float]) -> dict[str, Any]:
    """Return speeds as the trial records them, of int8 and float32 in each runtime, with narrow intervals."""
    return {
        name: {
            "int8": one,
            "float32": other,
            "ratio": one / other,
            "interval": [0.98 * one / other, 1.02 * one / other],
        }
        for name, (one, other) in {"openvino": openvino, "onnxruntime": onnxruntime}.items()
    }


@BOTH
def test_a_runtime_in_which_int8_is_slower_than_float32_is_named_with_what_is_faster(tiny: TinyWorkspace) -> None:
    speed = {**measured("openvino"), "runtimes": rates((120, 60), (30, 50))}
    package = package_with(tiny, speed=speed)
    assert choose_for(package, Runtime.AUTO).notes == ()
    (note,) = choose_for(package, Runtime.ONNXRUNTIME).notes
    assert note == (
        f"{package.prefix}: int8 runs 0.60x as fast as float32 in onnxruntime here; --runtime openvino runs it 4.0x as "
        "fast"
    )


@BOTH
def test_a_float32_package_is_advised_where_int8_is_slower_in_every_runtime(tiny: TinyWorkspace) -> None:
    package = package_with(tiny, speed={**measured("openvino"), "runtimes": rates((40, 60), (30, 50))})
    for wanted in Runtime:
        (note,) = choose_for(package, wanted).notes
        assert note.endswith("; a float32 package is faster, made by build --set backend.dtype=fp32")


@BOTH
def test_auto_leaves_a_runtime_in_which_int8_is_slower_than_float32_where_the_faster_is_not_known(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "is_arm", lambda: False)
    speed = {**measured(None), "runtimes": rates((40, 60), (41, 30))}
    assert choose_for(package_with(tiny, speed=speed), Runtime.AUTO).runtime is Runtime.ONNXRUNTIME
    speed["runtimes"]["openvino"]["interval"] = [0.6, 1.1]
    assert choose_for(package_with(tiny, speed=speed), Runtime.AUTO).runtime is Runtime.OPENVINO


@BOTH
@pytest.mark.parametrize("verdict", ["lost", "refused", "suspicious"])
def test_auto_never_takes_a_runtime_whose_proof_was_not_good(tiny: TinyWorkspace, verdict: str) -> None:
    bad = {"verdict": verdict, "cause": "died by SIGSEGV"}
    package = package_with(tiny, openvino=bad, speed=measured("openvino"))
    assert fit_runtimes(package) == [Runtime.ONNXRUNTIME]
    assert choose_for(package, Runtime.AUTO) == choose_for(package, Runtime.ONNXRUNTIME)
    named = choose_for(package, Runtime.OPENVINO)
    assert named.runtime is Runtime.OPENVINO
    (note,) = named.notes
    assert "died by SIGSEGV" in note


@BOTH
def test_auto_takes_exact_kernels_for_8_bit_weights_where_others_saturate(
    tiny: TinyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_with(tiny, target="vnni", speed=measured("openvino"))
    monkeypatch.setattr(hardware, "is_x86", lambda: True)
    monkeypatch.setattr("pipeline.host.hardware._cpuinfo", lambda: {"flags": "avx2"})
    chosen = choose_for(package, Runtime.AUTO)
    assert chosen.runtime is Runtime.ONNXRUNTIME
    (note,) = chosen.notes
    assert "ONNX Runtime takes exact kernels, which are slower" in note
    (note,) = choose_for(package, Runtime.OPENVINO).notes
    assert "add --runtime onnxruntime, which is exact" in note


def test_misfit_is_none_where_the_package_was_proven(tiny: TinyWorkspace) -> None:
    package = package_with(tiny)
    assert [package.misfit(runtime) for runtime in installed_runtimes()] == [None] * len(installed_runtimes())


@pytest.mark.parametrize(
    ("changed", "was"),
    [
        ({"version": "1.0"}, "onnxruntime 1.0 on "),
        ({"instruction_sets": ["AVX2"]}, f"onnxruntime {version_of(Runtime.ONNXRUNTIME)} on AVX2, "),
    ],
)
def test_misfit_says_what_the_package_was_proven_with_and_what_is_here(
    tiny: TinyWorkspace, changed: dict[str, object], was: str
) -> None:
    note = package_with(tiny, onnxruntime=changed).misfit(Runtime.ONNXRUNTIME)
    assert note is not None
    assert "\n" not in note
    assert f"was proven with {was}" in note
    sets = ", ".join(instruction_sets()) or "no int8 instructions"
    assert f"here is onnxruntime {version_of(Runtime.ONNXRUNTIME)} on {sets}: " in note


def test_misfit_takes_earlier_packages_by_what_they_say_of_their_check(tiny: TinyWorkspace) -> None:
    assert tiny.package.misfit(Runtime.ONNXRUNTIME) is None  # it says nothing
    facts = json.loads((tiny.folder / "package.json").read_text(encoding="utf-8"))
    facts |= {"checked_on": ["AVX2"], "versions": {"onnxruntime": "1.20.0"}, "target": "avx2"}
    write_json(tiny.folder / "package.json", facts)
    write_manifest(tiny.folder, "package")
    assert "was proven with onnxruntime 1.20.0 on AVX2, and here is " in str(tiny.package.misfit(Runtime.ONNXRUNTIME))


def test_commands_say_that_a_package_was_not_proven_here(
    tiny: TinyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = package_with(tiny, onnxruntime={"version": "1.0"})
    prefix, named = str(package.prefix), ["--runtime", "onnxruntime"]
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "-m", prefix, "--datalist", str(tiny.datalist), "--path_output", "out", *named]) == 0
    assert "note: " in (out := capsys.readouterr().out)
    assert out.count("was proven with onnxruntime 1.0 on ") == 1
    assert main(["eval", "--result_path", "out"]) == 0
    assert capsys.readouterr().out.count("was proven with onnxruntime 1.0 on ") == 1
    assert main(["eval", "--result_path", "out", "--report", "page.html"]) == 0
    assert '<p class="bad">' in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["predict", str(tiny.images[0]), "-m", prefix, *named]) == 0
    assert capsys.readouterr().err.count("was proven with onnxruntime 1.0 on ") == 1
