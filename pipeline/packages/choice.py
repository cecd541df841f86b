"""Which runtime `auto` means for a package on this machine, and what the user should know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.host import hardware
from pipeline.packages.package import Package
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, installed_runtimes, version_of


@dataclass(frozen=True)
class Choice:
    """A runtime, and lines for people."""

    runtime: Runtime
    notes: tuple[str, ...]


def choose_for(package: Package, wanted: Runtime) -> Choice:
    """Return the runtime to run a package in.

    `auto` leaves out runtimes without a good proof in the package, and those whose kernels would saturate on this CPU,
    as long as another is left; of the rest it takes the one that the build measured as faster on this machine, or where
    that is not known, the one that is usually faster: OpenVINO on x86, ONNX Runtime elsewhere, unless int8 was slower
    than float32 there and not in another. Whichever is taken, a line says so where int8 was slower than float32.

    Raises:
        BackendError: the runtime asked for is not installed.
    """
    runtime, notes = _automatic(package) if wanted is Runtime.AUTO else (choose(wanted), [])
    misfit = package.misfit(runtime)
    slow = slowness(package, runtime)
    return Choice(runtime, tuple([misfit] if misfit else [*notes, *([slow] if slow else [])]))


def runtime_for(package: Package, wanted: Runtime) -> Runtime:
    """Return the runtime alone; raises as `choose_for`."""
    return choose_for(package, wanted).runtime


def _automatic(package: Package) -> tuple[Runtime, list[str]]:
    usual = choose(Runtime.AUTO)
    fit = fit_runtimes(package) or [usual]
    if len(fit) == 1:
        return fit[0], []
    speed = package.speed()
    if speed is None:
        return usual, []
    if not was_measured_here(speed):
        where = f"{speed['machine']['cpu']}, {speed['machine']['cores']} cores"
        return usual, [
            f"speed was measured on another machine ({where}); auto takes {usual.value}, bench --sweep finds the best"
        ]
    if speed["fastest"] and Runtime(speed["fastest"]) in fit:
        return Runtime(speed["fastest"]), []
    sound = [each for each in fit if not _is_slower(speed, each)]
    return (sound[0] if sound and usual not in sound else usual), []


def slowness(package: Package, runtime: Runtime) -> str | None:
    """Return a warning where int8 was slower than float32 in a runtime, in the build's trial on this machine.

    It names what is faster: another runtime that is fit, or a float32 package.
    """
    speed = package.speed()
    if speed is None or not was_measured_here(speed) or not _is_slower(speed, runtime):
        return None
    rates = {name: each["int8"] for name, each in speed["runtimes"].items()}
    fit = [each.value for each in fit_runtimes(package) if each.value in rates]
    best = max(fit, key=lambda name: rates[name], default=runtime.value)
    float32 = speed["runtimes"][runtime.value]["float32"]
    faster = (
        f"--runtime {best} runs it {rates[best] / rates[runtime.value]:.1f}x as fast"
        if rates[best] > float32
        else "a float32 package is faster, made by build --set backend.dtype=fp32"
    )
    measured = speed["runtimes"][runtime.value]["ratio"]
    return f"{package.prefix}: int8 runs {measured:.2f}x as fast as float32 in {runtime.value} here; {faster}"


def _is_slower(speed: Mapping[str, Any], runtime: Runtime) -> bool:
    """Tell whether the interval of int8's speed over float32's lies below 1 in a runtime."""
    found = speed.get("runtimes", {}).get(runtime.value)
    return found is not None and found["interval"] is not None and found["interval"][1] < 1


def fit_runtimes(package: Package) -> list[Runtime]:
    """Return the installed runtimes that `auto` may take; where none is fit, all that are installed."""
    installed = installed_runtimes()
    return [each for each in installed if _is_fit(package, each)] or installed


def _is_fit(package: Package, runtime: Runtime) -> bool:
    """Tell whether a runtime's kernels are exact here, and its proof was good."""
    if package.has_wide_weights and runtime is not Runtime.ONNXRUNTIME and hardware.saturates(runtime.value):
        return False
    proof = package.proven_in(runtime)
    return proof is None or proof["verdict"] == "good"


def was_measured_here(speed: dict[str, object]) -> bool:
    """Tell whether a build's `speed` was measured on this machine with the runtimes that are installed."""
    return speed["machine"] == machine()


def machine() -> dict[str, object]:
    """Return what the speed of a package depends on besides the package."""
    versions = {runtime.value: version_of(runtime) for runtime in installed_runtimes()}
    return {**hardware.describe(), "versions": versions}
