"""Doctor: whether this machine can build and run packages, and what to do where it cannot."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path

from pipeline.config.documents import find_data_file
from pipeline.errors import PipelineError, in_a_line
from pipeline.host import hardware
from pipeline.host.user_cache import cache_folder
from pipeline.terminal.counts import counted

_GIB = 1 << 30
_LEAST_MEMORY = 4 * _GIB  # a build of wide_resnet50_2 took 3 GiB
_LEAST_DISK = 5 * _GIB  # the artefacts of a few builds
_FAST = ("AMX int8", "AVX-512 VNNI", "AVX-VNNI", "int8 matrix multiply", "dot product")


class State(Enum):
    OK = "ok"
    NOTE = "note"  # works, but not as well as it could
    FAULT = "FAULT"  # something does not work


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: State
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state.value:6}{self.what}" + (f"; {self.advice}" if self.advice else "")


def examine(workspace: Path) -> list[Finding]:
    """Return what there is to say of this machine, in the order of its importance.

    Args:
        workspace: where builds would go; its disk is looked at.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _cpu, _memory, _runtimes, _libraries, _files)
    return [*(finding for check in checks for finding in check()), *_disk(workspace)]


def _python() -> Iterator[Finding]:
    yield Finding(State.OK, f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    if platform.system() == "Windows":
        yield Finding(State.FAULT, "Windows is not supported", "use Linux, or Linux in WSL")


def _cpu() -> Iterator[Finding]:
    sets, cores = hardware.instruction_sets(), hardware.available_cores()
    yield Finding(State.OK, f"{hardware.cpu_name()}, {counted(cores, 'core')} for this process, {', '.join(sets)}")
    if cores < (os.cpu_count() or 1):
        yield Finding(
            State.NOTE, f"{os.cpu_count()} cores in all", "affinity or a container's quota leaves the others out"
        )
    if hardware.saturates():
        yield Finding(State.OK, "no VNNI and no AMX: int8 is exact here too, and about twice as fast as float32")
    elif not set(sets) & set(_FAST):
        yield Finding(State.NOTE, "no int8 instructions known", "measure with bench --reference whether int8 is faster")


def _memory() -> Iterator[Finding]:
    total = hardware.memory_bytes()
    if total is None:
        return
    enough = total >= _LEAST_MEMORY
    advice = "" if enough else "wide networks need about 4 GiB to build; running packages needs less"
    yield Finding(State.OK if enough else State.NOTE, f"{total / _GIB:.1f} GiB of memory for this process", advice)


def _runtimes() -> Iterator[Finding]:
    found = {name: _version(name) for name in ("openvino", "onnxruntime")}
    for name, (version, reason) in found.items():
        if version:
            yield Finding(State.OK, f"{name} {version}")
        else:
            other = any(each for key, (each, _) in found.items() if key != name)
            yield Finding(State.NOTE if other else State.FAULT, f"{name}: {reason}", f"run: pip install {name}")


def _libraries() -> Iterator[Finding]:
    for name in ("numpy", "pillow", "onnx", "torch"):
        version, reason = _version(name)
        if version:
            cuda = name == "torch" and "+cpu" not in version and _is_installed("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
            advice = "its CUDA libraries are not used here; the CPU build saves gigabytes" if cuda else ""
            yield Finding(State.NOTE if cuda else State.OK, f"{name} {version}", advice)
        elif name == "torch" or (name == "onnx" and reason == "not installed"):
            yield Finding(State.NOTE, f"{name}: {reason}", f"packages run without; building needs: pip install {name}")
        else:
            yield Finding(State.FAULT, f"{name}: {reason}", f"run: pip install {name}")


def _version(name: str) -> tuple[str, str]:
    """Return the version of a library that imports, or "" and why it does not."""
    module = {"pillow": "PIL"}.get(name, name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if importlib.util.find_spec(module) is None:
            return "", "not installed"
        version = "of another distribution"  # as the onnxruntime of onnxruntime-gpu
    if name == "openvino":
        module = "pipeline.runtimes.ov"  # which keeps it from reporting the import
    try:
        importlib.import_module(module)
    except Exception as err:  # a library of another platform, or half of one, fails in its own ways
        return "", f"{version} does not import ({in_a_line(err)})"
    return version, ""


def _is_installed(*names: str) -> bool:
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return True
    return False


def _files() -> Iterator[Finding]:
    try:
        find_data_file("build_configs", "timm_wideres.yaml")
        yield Finding(State.OK, "build_configs/, vdsp_params/ and data_prep/ are there")
    except PipelineError as err:
        yield Finding(State.FAULT, str(err), "install the package again")
    try:
        folder = cache_folder()
    except PipelineError as err:
        yield Finding(State.NOTE, str(err))
        return
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    writable = os.access(nearest, os.W_OK)
    advice = (
        ""
        if writable
        else "it cannot be written: build --weights auto and bench --sweep need it; set INT8_PIPELINE_CACHE"
    )
    yield Finding(State.OK if writable else State.NOTE, f"downloads and sweeps are kept in {folder}", advice)


def _disk(workspace: Path) -> Iterator[Finding]:
    nearest = next(parent for parent in (workspace.absolute(), *workspace.absolute().parents) if parent.exists())
    free = shutil.disk_usage(nearest).free
    enough, writable = free >= _LEAST_DISK, os.access(nearest, os.W_OK)
    if not writable:
        yield Finding(State.FAULT, f"{workspace}: cannot be written", "set workspace.path to a folder of yours")
    advice = "" if enough else "a build takes a few times the size of the model; 5 GiB are comfortable"
    yield Finding(State.OK if enough else State.NOTE, f"{free / _GIB:.1f} GiB free for {workspace}", advice)


def faults(findings: Sequence[Finding]) -> int:
    return sum(finding.state is State.FAULT for finding in findings)
