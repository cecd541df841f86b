"""Which runtime `auto` means for a package on this machine, and what the user should know about it."""

from __future__ import annotations

from dataclasses import dataclass

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
    the build ran elsewhere, the one that is usually faster: OpenVINO on x86, ONNX Runtime elsewhere.

    Raises:
        BackendError: the runtime asked for is not installed.
    """
    runtime, notes = _automatic(package) if wanted is Runtime.AUTO else (choose(wanted), [])
    misfit = package.misfit(runtime)
    return Choice(runtime, tuple([misfit] if misfit else notes))


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
    fastest = Runtime(speed["fastest"]) if speed["fastest"] else usual
    return (fastest if fastest in fit else usual), []


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
